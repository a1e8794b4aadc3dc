"""Tasks: what is asked and what is right."""
