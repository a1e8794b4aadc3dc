"""Rollout engines: prompts in, completions out."""
