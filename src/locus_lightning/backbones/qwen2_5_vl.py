"""Qwen2.5-VL, the paper's backbone (``Qwen2_5_VLForConditionalGeneration``)."""

from __future__ import annotations

from typing import Any

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.qwen import QwenVLBackbone
from locus_lightning.boxes import BoxFrame
from locus_lightning.types import Size


class Qwen2_5_VLBackbone(QwenVLBackbone):
    """Qwen2.5-VL: answers are pixels of the *resized* image, whose sides are multiples of 28.

    The released models resize to between 3,136 and 12,845,056 pixels.

    Args:
        original_pixels: Whether the model answers in original pixels instead, as in the paper (section 4). This is right only where
            images are not resized.
        kwargs: min_pixels, max_pixels, and those of :class:`HFBackbone`.
    """

    model_types = ("qwen2_5_vl",)
    convention = Convention("pixels, resized", '{"bbox_2d": [x1, y1, x2, y2]}', True, "max_pixels")

    def __init__(
        self,
        checkpoint: str,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        original_pixels: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(checkpoint, min_pixels, max_pixels, **kwargs)
        self.original_pixels = original_pixels

    def frame(self, size: Size) -> BoxFrame:
        """Pixels of the image as the model's own processor resizes it."""
        return BoxFrame.stretched(size, size if self.original_pixels else self.resized(size))
