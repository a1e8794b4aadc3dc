"""Callbacks: pictures in the log, checkpoints that can be continued, the summary at the end."""
