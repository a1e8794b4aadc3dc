"""The training modules and what a step is made of."""
