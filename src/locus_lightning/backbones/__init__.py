"""Backbones: a model family's prompt, frame, loading and forward passes, one file a family over one shared base."""
