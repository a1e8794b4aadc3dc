"""LLaVA-OneVision (``LlavaOnevisionForConditionalGeneration``): several images, each in tiles."""

from __future__ import annotations

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.tiled import TiledLlavaBackbone


class LlavaOnevisionBackbone(TiledLlavaBackbone):
    """LLaVA-OneVision. The two images are given as a flat list, which keeps their tiles; nested, the scene would be seen
    once at the tower's size only.

    Answers are fractions of the image (the family's papers do not say whether of the padded image; unpadded is our choice).

    Args:
        decimals: digits after the point.
        max_tiles: use only tile grids of at most this many tiles; null keeps the checkpoint's (up to 36 of 384 px). Fewer
            tiles are fewer tokens: a grid of n tiles costs up to about 730 * (n + 1).
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("llava_onevision",)
    convention = Convention("0-1", "[x1, y1, x2, y2] from 0 to 1", False, "max_tiles")
