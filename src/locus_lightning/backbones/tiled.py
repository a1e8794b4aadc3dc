"""What LLaVA-NeXT and LLaVA-OneVision share: an overview of the image, then tiles of it on one of several grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.boxes import BoxFrame, image_box, raster
from locus_lightning.errors import ConfigError
from locus_lightning.types import Prompt, Size


class TiledLlavaBackbone(HFBackbone):
    """The base of LLaVA-NeXT and LLaVA-OneVision.

    Answers are fractions of the image (the families' papers do not say whether of the padded image; unpadded is our choice).

    Args:
        decimals: The number of digits after the point.
        max_tiles: Only tile grids of at most this many tiles are used; null keeps the checkpoint's.
        kwargs: see :class:`HFBackbone`.
    """

    per_image_key = "image_sizes"
    images_in_text = True

    def __init__(self, checkpoint: str, decimals: int = 3, max_tiles: int | None = None, **kwargs: Any) -> None:
        super().__init__(checkpoint, **kwargs)
        if max_tiles is not None and max_tiles < 1:
            raise ConfigError(f"backbone.max_tiles is {max_tiles}; it is at least 1, or null.")
        self.decimals, self.max_tiles = decimals, max_tiles

    def prepare_processor(self) -> None:
        """Keep the tile grids that ``max_tiles`` allows, in processor and model alike."""
        side = self.hf.config.vision_config.image_size
        grids = self._all_grids = [list(grid) for grid in self.hf.config.image_grid_pinpoints]
        if self.max_tiles is not None:
            tiles = [(grid[0] // side) * (grid[1] // side) for grid in grids]
            if min(tiles) > self.max_tiles:
                raise ConfigError(f"backbone.max_tiles is {self.max_tiles}; the checkpoint's smallest tile grid has {min(tiles)}.")
            grids = [grid for grid, count in zip(grids, tiles, strict=True) if count <= self.max_tiles]
        self._set_grids(grids)

    def _set_grids(self, grids: list[list[int]]) -> None:
        self.processor.image_processor.image_grid_pinpoints = grids
        self.hf.config.image_grid_pinpoints = grids

    def save_pretrained(self, folder: Path, remember: Mapping[str, Any] | None = None) -> None:
        """See :meth:`Backbone.save_pretrained`; with the checkpoint's own grids, which fit the base model that an adapter is put on."""
        used = self.hf.config.image_grid_pinpoints
        self._set_grids(self._all_grids)
        super().save_pretrained(folder, remember)
        self._set_grids(used)

    def frame(self, size: Size) -> BoxFrame:
        """Fractions of the image."""
        return BoxFrame.fractions(size, self.decimals)

    def merge_vision(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Images have different numbers of tiles: pad with empty ones, which the model cuts off again."""
        tiles = max(p.vision["pixel_values"].shape[1] for p in prompts)
        padded = [F.pad(v := p.vision["pixel_values"], (0, 0) * 3 + (0, tiles - v.shape[1])) for p in prompts]
        rest = {key: torch.cat([p.vision[key] for p in prompts]) for key in prompts[0].vision if key != "pixel_values"}
        return {"pixel_values": torch.cat(padded), **rest}

    def image_cells(self, prompt: Prompt, size: Size) -> Tensor:
        """A grid over the image, then the finer grid of its tiles, whose rows end in a token that stands for nothing."""
        config = self.hf.config.vision_config
        base = config.image_size // config.patch_size
        rest = len(self.image_tokens(prompt)) - base**2
        rows, columns = self._tile_grid(size, base)
        if rows * (columns + 1) != rest:
            raise ConfigError(f"{type(self).__name__}: {rest} tile tokens of an image of {size} are no grid of {rows} x {columns}.")
        tiles = raster(rows, columns, image_box(size)).view(rows, columns, 4)
        return torch.cat([raster(base, base, image_box(size)), torch.cat([tiles, tiles.new_zeros(rows, 1, 4)], dim=1).flatten(0, 1)])

    def _tile_grid(self, size: Size, base: int) -> tuple[int, int]:
        """(rows, columns) of the tiles' tokens, padding cut off, as the processor counts them."""
        from transformers.image_processing_utils import select_best_resolution

        side = self.hf.config.vision_config.image_size
        high, wide = select_best_resolution((size[1], size[0]), self.processor.image_processor.image_grid_pinpoints)
        tokens, rows = self.processor._get_unpadded_features(size[1], size[0], base, base, high // side, wide // side)
        return int(rows), int(tokens) // int(rows)
