"""Annotated photos in COCO's format."""
