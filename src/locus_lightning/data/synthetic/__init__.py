"""Drawn scenes, what is asked about them, and a benchmark of them."""
