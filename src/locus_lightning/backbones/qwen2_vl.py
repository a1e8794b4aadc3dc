"""Qwen2-VL (``Qwen2VLForConditionalGeneration``)."""

from __future__ import annotations

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.qwen import QwenVLBackbone
from locus_lightning.boxes import BoxFrame
from locus_lightning.types import Size


class Qwen2VLBackbone(QwenVLBackbone):
    """Qwen2-VL: answers are thousandths of the image's width and height, whatever it is resized to (sides are multiples of 28).

    Args:
        kwargs: min_pixels, max_pixels (the released models' bounds are 3,136 and 12,845,056), and those of :class:`HFBackbone`.
    """

    model_types = ("qwen2_vl",)
    convention = Convention("0-1000", "<|box_start|>(x1,y1),(x2,y2)<|box_end|>", True, "max_pixels")

    def frame(self, size: Size) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(size)
