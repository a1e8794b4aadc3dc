"""Aya Vision (``AyaVisionForConditionalGeneration``): tiles as InternVL makes them, before a Cohere language model with sliding windows."""

from __future__ import annotations

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.internvl import InternVLBackbone


class AyaVisionBackbone(InternVLBackbone):
    """Aya Vision: an image is cut into tiles of 364 px with 169 tokens each, and a thumbnail stands behind them.

    No convention for boxes is documented for these models. Answers are thousandths of the image's width and height: our choice, which
    reinforcement has to teach. Three of four layers see a window of 4,096 positions, so that the plain batch is run.

    Args:
        max_tiles: tiles an image at most, thumbnail not counted; null keeps the checkpoint's (12).
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("aya_vision",)
    convention = Convention("0-1000", "none found", False, "max_tiles", packs=False)

    def tile_tokens(self) -> int:
        """Tokens of a tile."""
        return int(self.processor.img_size // self.processor.patch_size) ** 2
