"""MiMo-VL: the architecture of Qwen2.5-VL, and its frame."""

from __future__ import annotations

from locus_lightning.backbones.qwen2_5_vl import Qwen2_5_VLBackbone


class MiMoVLBackbone(Qwen2_5_VLBackbone):
    """MiMo-VL, whose checkpoints are of type ``qwen2_5_vl``: pixels of the resized image, as :class:`Qwen2_5_VLBackbone` writes them."""
