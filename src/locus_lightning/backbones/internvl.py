"""InternVL3 and 2.5 in transformers' own form (``InternVLForConditionalGeneration``)."""

from __future__ import annotations

from typing import Any

from locus_lightning.backbones.base import Convention
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.errors import ConfigError
from locus_lightning.geometry import BoxFrame
from locus_lightning.types import CueSample, Question


class InternVLBackbone(HFBackbone):
    """InternVL: answers are thousandths of the image's width and height; an image is cut into tiles of 448 px with 256 tokens each, and
    a thumbnail stands behind them.

    Use the checkpoints whose names end in ``-hf``: the others bring code of their own.

    Args:
        max_tiles: tiles an image at most, thumbnail not counted; null keeps the checkpoint's (12).
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("internvl",)
    joins_features = True
    convention = Convention("0-1000", "<box>[[x1, y1, x2, y2]]</box>", True, "max_tiles")

    def __init__(self, checkpoint: str, max_tiles: int | None = None, **kwargs: Any) -> None:
        super().__init__(checkpoint, **kwargs)
        if max_tiles is not None and max_tiles < 1:
            raise ConfigError(f"backbone.max_tiles is {max_tiles}; it is at least 1, or null.")
        self.max_tiles = max_tiles

    def prepare_processor(self) -> None:
        """Bound the tiles."""
        if self.max_tiles is not None:
            self.processor.image_processor.max_patches = self.max_tiles

    def frame(self, sample: CueSample | Question) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(sample.image.size)
