"""Downstream evaluation: plain image + question, never a cue."""
