"""The model ``locus`` of lmms-eval: whatever ``locus eval`` opens, an adapter or a training checkpoint too."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("locus", simple_class_path="locus_lmms_eval.model.Locus")
"""What lmms-eval reads from the entry point; torch is imported when the model is asked for."""
