"""Cue corpora: built once, read many times."""
