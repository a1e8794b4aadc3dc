"""Qwen3-VL (``Qwen3VLForConditionalGeneration``): features of several layers of the tower reach the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.qwen import QwenVLBackbone
from locus_lightning.boxes import BoxFrame
from locus_lightning.types import Size


class Qwen3VLBackbone(QwenVLBackbone):
    """Qwen3-VL: answers are thousandths of the image's width and height, whatever it is resized to (sides are multiples of 32).

    An image's features hold, side by side, what stands in its tokens' place and what is added behind the first layers of the language
    model: (tokens, D * (1 + layers)).

    Args:
        kwargs: min_pixels, max_pixels (the released models' bounds are 65,536 and 16,777,216; a 16 px cue becomes 256 x 256), and those
            of :class:`HFBackbone`.
    """

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    convention = Convention("0-1000", '{"bbox_2d": [x1, y1, x2, y2]}', True, "max_pixels")

    def frame(self, size: Size) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(size)

    def split_images(self, outputs: Any) -> list[Tensor]:
        """See :meth:`HFBackbone.split_images`; features of the further layers beside the last one's."""
        layers = [outputs.pooler_output, *outputs.deepstack_features]
        return [torch.cat(parts, dim=-1) for parts in zip(*layers, strict=True)]

    def image_outputs(self, features: Sequence[Tensor]) -> Any:
        """See :meth:`HFBackbone.image_outputs`."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        width = self.hf.config.vision_config.out_hidden_size
        first, *further = zip(*(image.split(width, dim=-1) for image in features), strict=True)
        return BaseModelOutputWithDeepstackFeatures(pooler_output=first, deepstack_features=further)  # type: ignore[arg-type]
