"""Qwen3.5 (``Qwen3_5ForConditionalGeneration``): three of four layers of the language model are recurrent (gated delta networks)."""

from __future__ import annotations

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.qwen import QwenVLBackbone
from locus_lightning.boxes import BoxFrame
from locus_lightning.types import Size


class Qwen3_5Backbone(QwenVLBackbone):
    """Qwen3.5: answers are thousandths of the image's width and height, as in Qwen3-VL (sides are multiples of 32).

    Recurrent layers read a row from left to right, so that completions cannot stand beside one another behind one prompt: the plain batch is
    run. Without the packages ``flash-linear-attention`` and ``causal-conv1d`` transformers computes these layers in plain PyTorch, which is slow.

    Args:
        kwargs: min_pixels, max_pixels, and those of :class:`HFBackbone`.
    """

    model_types = ("qwen3_5", "qwen3_5_moe")
    convention = Convention("0-1000", "none found", False, "max_pixels", packs=False)

    def frame(self, size: Size) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(size)
