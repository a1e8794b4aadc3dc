"""``locus study``: several training runs that differ in one thing each, with seeds; one table and one figure at the end."""
