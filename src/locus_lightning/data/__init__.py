"""Data: annotated photos, drawn scenes, and the order they come in."""
