"""What the Qwen-VL families share: pixel bounds, multimodal rotary positions, the size that an image is resized to."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.backbones.shared_prefix.windows import use_windows
from locus_lightning.boxes import MOST_ASPECT, image_box, raster
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.types import Prompt, Size


class QwenVLBackbone(HFBackbone):
    """The base of Qwen2-VL and its successors: an image keeps its proportions, and costs tokens by its area.

    Args:
        min_pixels: An image with fewer pixels is enlarged; null keeps the checkpoint's bound.
        max_pixels: An image with more pixels is reduced; null keeps the checkpoint's bound. It bounds the cue too.
        kwargs: see :class:`HFBackbone`.
    """

    per_image_key = "image_grid_thw"

    def __init__(self, checkpoint: str, min_pixels: int | None = None, max_pixels: int | None = None, **kwargs: Any) -> None:
        super().__init__(checkpoint, **kwargs)
        if min_pixels and max_pixels and min_pixels > max_pixels:
            raise ConfigError(f"backbone.min_pixels {min_pixels} is above backbone.max_pixels {max_pixels}.")
        self.min_pixels, self.max_pixels = min_pixels, max_pixels

    def prepare_processor(self) -> None:
        """Set the pixel bounds; let the tower attend to its windows in few calls."""
        use_windows(self.hf)
        self.set_bounds()

    def set_bounds(self, frames: int = 1) -> None:
        """Set the pixel bounds; a processor may count an image as several ``frames``.

        Raises:
            ConfigError: the lower one is above the other.
        """
        images = self.processor.image_processor
        low = self.min_pixels * frames if self.min_pixels else images.size["shortest_edge"]
        high = self.max_pixels * frames if self.max_pixels else images.size["longest_edge"]
        if low > high:
            raise ConfigError(
                f"backbone.min_pixels {low // frames} is above backbone.max_pixels {high // frames} (what is not set is the checkpoint's)."
            )
        images.size = {"shortest_edge": low, "longest_edge": high}

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """The image itself; it is refused where the family's processor would refuse it.

        Raises:
            DataError: it is over 200 times as long as wide.
        """
        self._check_aspect(image.size)
        return image

    def _check_aspect(self, size: Size) -> None:
        if max(size) > MOST_ASPECT * min(size):
            raise DataError(
                f"an image of {size[0]}x{size[1]} px is over {MOST_ASPECT} times as long as wide, which {self.checkpoint} does not take; leave it out."
            )

    def resized(self, size: Size) -> Size:
        """(width, height) that the processor gives the image: multiples of the patch side times the merge size."""
        self._check_aspect(size)
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        images = self.processor.image_processor
        factor = images.patch_size * images.merge_size
        bounds = (images.size["shortest_edge"], images.size["longest_edge"])
        height, width = smart_resize(size[1], size[0], factor, *bounds)
        return width, height

    def positions(self, ids_P: Tensor, inputs: Any) -> Tensor:
        """Multimodal rotary positions (3, P): time, height, width."""
        positions, _ = self.hf.base_model.get_rope_index(
            ids_P[None],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=torch.ones_like(ids_P[None]),
        )
        return positions[:, 0]

    def image_cells(self, prompt: Prompt, size: Size) -> Tensor:
        """A grid over the image; a token is a square of merged patches."""
        _, rows, columns = prompt.vision["image_grid_thw"][0].tolist()
        merge = self.processor.image_processor.merge_size
        return raster(rows // merge, columns // merge, image_box(size))
