"""VipLlavaBackbone: ViP-LLaVA (``VipLlavaForConditionalGeneration``), a LLaVA that sees several layers of its tower."""

from __future__ import annotations

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.llava import LlavaBackbone


class VipLlavaBackbone(LlavaBackbone):
    """ViP-LLaVA: images and boxes as in LLaVA-1.5, which it was trained on top of.

    Its authors train with marks that are drawn into the image (arXiv 2312.00784). That boxes in words follow LLaVA-1.5 is our reading of its
    data, not their word.

    Args:
        coordinates: see :class:`LlavaBackbone`.
        decimals: likewise.
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("vipllava",)
    joins_features = True  # this model's forward pass takes the features of all images as one tensor
    convention = Convention("0-1, square-padded", "none found", False, "fixed size")
