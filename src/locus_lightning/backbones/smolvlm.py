"""SmolVLM2 and Idefics3 (``SmolVLMForConditionalGeneration``, ``Idefics3ForConditionalGeneration``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.boxes import BoxFrame, image_box, raster
from locus_lightning.errors import ConfigError
from locus_lightning.types import Prompt, Size


class SmolVLMBackbone(HFBackbone):
    """SmolVLM2 and Idefics3: an image is cut into tiles, and the whole image stands behind them.

    No convention for boxes is documented for these models. Answers are thousandths of the image's width and height: our choice, which
    reinforcement has to teach.

    Args:
        longest_edge: the longer side that an image is resized to, pixels, a multiple of the tile's; null keeps the checkpoint's.
            Every tile costs tokens: 81 (SmolVLM2) or 169 (Idefics3).
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("smolvlm", "idefics3")
    convention = Convention("0-1000", "none found", False, "longest_edge")

    def __init__(self, checkpoint: str, longest_edge: int | None = None, **kwargs: Any) -> None:
        super().__init__(checkpoint, **kwargs)
        if longest_edge is not None and longest_edge < 1:
            raise ConfigError(f"backbone.longest_edge is {longest_edge}; give pixels, at least the side of a tile, or null.")
        self.longest_edge = longest_edge

    def prepare_processor(self) -> None:
        """Bound the image."""
        images = self.processor.image_processor
        tile = images.max_image_size["longest_edge"]
        if self.longest_edge is not None:
            if self.longest_edge % tile:
                raise ConfigError(f"backbone.longest_edge is {self.longest_edge}; tiles of this checkpoint are {tile} px: give a multiple.")
            images.size = {"longest_edge": self.longest_edge}

    def frame(self, size: Size) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(size)

    def merge_vision(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Prompts have different numbers of tiles: pad with empty ones, which the model leaves out."""
        tiles = max(p.vision["pixel_values"].shape[1] for p in prompts)

        def padded(x: Tensor) -> Tensor:
            """(1, tiles of a prompt, ...) -> (1, tiles, ...)."""
            return F.pad(x, (0, 0) * (x.dim() - 2) + (0, tiles - x.shape[1]))

        return {key: torch.cat([padded(p.vision[key]) for p in prompts]) for key in ("pixel_values", "pixel_attention_mask")}

    def image_cells(self, prompt: Prompt, size: Size) -> Tensor:
        """A grid over every tile, row by row, then one over the whole image."""
        text = self.processor.tokenizer.decode(prompt.ids_P)
        marks = [(int(row), int(column)) for row, column in re.findall(r"<row_(\d+)_col_(\d+)>", text)]
        count = round(self.processor.image_seq_len**0.5)
        rows, columns = (max(k) for k in zip(*marks, strict=True)) if marks else (0, 0)
        boxes = raster(rows, columns, image_box(size)).tolist() if marks else []
        return torch.cat([*(raster(count, count, (x1, y1, x2, y2)) for x1, y1, x2, y2 in boxes), raster(count, count, image_box(size))])
