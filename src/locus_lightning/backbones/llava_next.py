"""LLaVA-NeXT, also called LLaVA-1.6 (``LlavaNextForConditionalGeneration``): each image in tiles."""

from __future__ import annotations

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.tiled import TiledLlavaBackbone


class LlavaNextBackbone(TiledLlavaBackbone):
    """LLaVA-NeXT. Trained with one image a question; with scene and cue, reinforcement has to teach it to read two.

    Answers are fractions of the image (whether of the padded image is not confirmed; unpadded is our choice).

    Args:
        decimals: digits after the point.
        max_tiles: use only tile grids of at most this many tiles; null keeps the checkpoint's (up to 4 of 336 px). A grid of n tiles
            costs up to about 600 * (n + 1) tokens.
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("llava_next",)
    convention = Convention("0-1", "[x1, y1, x2, y2] from 0 to 1", False, "max_tiles")
