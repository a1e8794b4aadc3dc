"""Gemma 3 (``Gemma3ForConditionalGeneration``)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.boxes import BoxFrame, image_box, raster
from locus_lightning.types import Prompt, Size


class Gemma3Backbone(HFBackbone):
    """Gemma 3: every image is stretched to 896 x 896 and costs 256 tokens, which see one another in both directions.

    No convention for boxes is documented for these models. Answers are thousandths of the image's width and height: our choice, which
    reinforcement has to teach. Most layers see a window of tokens only, so completions cannot share a packed row: the plain batch is run.

    Args:
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("gemma3",)
    joins_features = True
    convention = Convention("0-1000", "none found", False, "fixed size", packs=False)

    def frame(self, size: Size) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(size)

    def further_inputs(self, ids_RS: Tensor, images: bool) -> dict[str, Any]:
        """Which tokens are an image's: the mask lets those see one another."""
        return {"token_type_ids": (ids_RS == self.hf.config.image_token_id).long()} if images else {}

    def image_cells(self, prompt: Prompt, size: Size) -> Tensor:
        """A grid over the image."""
        count = round(self.hf.config.mm_tokens_per_image**0.5)
        return raster(count, count, image_box(size))
