"""InternVL3 and 2.5 in transformers' own form (``InternVLForConditionalGeneration``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.boxes import BoxFrame, image_box, raster
from locus_lightning.errors import ConfigError
from locus_lightning.types import Prompt, Size


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

    def frame(self, size: Size) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(size)

    def tile_tokens(self) -> int:
        """Tokens of a tile."""
        return int(self.processor.image_seq_length)

    def image_cells(self, prompt: Prompt, size: Size) -> Tensor:
        """A grid over every tile, then one over the whole image where it was cut up."""
        from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

        images = self.processor.image_processor
        columns, rows = get_optimal_tiled_canvas(
            (size[1], size[0]), (images.size["height"], images.size["width"]), images.min_patches, images.max_patches
        )
        count = round(self.tile_tokens() ** 0.5)
        tiles = [raster(count, count, box) for box in map(tuple, raster(rows, columns, image_box(size)).tolist())]
        return torch.cat([*tiles, raster(count, count, image_box(size))] if rows * columns > 1 else tiles)
