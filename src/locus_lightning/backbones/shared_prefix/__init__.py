"""A prompt paid for once: packed rows, attention over them, and the cache of decoding."""
