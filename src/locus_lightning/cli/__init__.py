"""The ``locus`` command: one module a command."""
