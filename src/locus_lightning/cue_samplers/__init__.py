"""Cue samplers: which region of an image becomes the cue? Built on :class:`~locus_lightning.cue_samplers.base.CueSampler`."""
