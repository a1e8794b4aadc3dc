"""Qwen2.5-VL, the paper's backbone (``Qwen2_5_VLForConditionalGeneration``)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.errors import ConfigError
from locus_lightning.geometry import BoxFrame
from locus_lightning.types import CueSample, Question


class Qwen2_5_VLBackbone(HFBackbone):
    """Qwen2.5-VL: answers are pixels of the *resized* image, whose sides are multiples of 28.

    Args:
        min_pixels: an image with fewer pixels is enlarged; null keeps the checkpoint's bound (3,136).
        max_pixels: an image with more is reduced; null keeps the checkpoint's bound (12,845,056). The cue is bound alike.
        original_pixels: let the model speak of original pixels instead, as the paper does (section 4). Only right where
            images are not resized.
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("qwen2_5_vl",)
    per_image_key = "image_grid_thw"

    def __init__(
        self,
        checkpoint: str,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        original_pixels: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(checkpoint, **kwargs)
        if min_pixels and max_pixels and min_pixels > max_pixels:
            raise ConfigError(f"backbone.min_pixels {min_pixels} is above backbone.max_pixels {max_pixels}.")
        self.min_pixels, self.max_pixels, self.original_pixels = min_pixels, max_pixels, original_pixels

    def prepare_processor(self) -> None:
        """Set the pixel bounds."""
        images = self.processor.image_processor
        low = self.min_pixels or images.size["shortest_edge"]
        high = self.max_pixels or images.size["longest_edge"]
        images.size = {"shortest_edge": low, "longest_edge": high}

    def frame(self, sample: CueSample | Question) -> BoxFrame:
        """Pixels of the image as the model's own processor resizes it."""
        if self.original_pixels:
            return BoxFrame.stretched(sample.image.size, sample.image.size)
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        images = self.processor.image_processor
        factor = images.patch_size * images.merge_size
        bounds = (images.size["shortest_edge"], images.size["longest_edge"])
        height, width = smart_resize(sample.image.height, sample.image.width, factor, *bounds)
        return BoxFrame.stretched(sample.image.size, (width, height))

    def positions(self, ids_P: Tensor, inputs: Any) -> Tensor:
        """Multimodal rotary positions (3, P): time, height, width."""
        positions, _ = self.hf.base_model.get_rope_index(
            ids_P[None],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=torch.ones_like(ids_P[None]),
        )
        return positions[:, 0]
