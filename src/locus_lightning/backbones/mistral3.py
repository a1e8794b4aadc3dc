"""Mistral Small 3.1 and its relatives (``Mistral3ForConditionalGeneration``): a Pixtral tower before a Mistral."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.boxes import BoxFrame, image_box, raster
from locus_lightning.types import Prompt, Size


class Mistral3Backbone(HFBackbone):
    """Mistral Small 3.1 and 3.2: every image keeps its shape, and a line of image tokens ends in a break token.

    No convention for boxes is documented for these models. Answers are thousandths of the image's width and height: our choice, which
    reinforcement has to teach.

    Args:
        longest_edge: The number of pixels that the longer side of an image is reduced to; null keeps the checkpoint's own (1,540).
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("mistral3",)
    convention = Convention("0-1000", "none found", False, "longest_edge")

    def __init__(self, checkpoint: str, longest_edge: int | None = None, **kwargs: object) -> None:
        super().__init__(checkpoint, **kwargs)  # type: ignore[arg-type]
        self.longest_edge = longest_edge

    def prepare_processor(self) -> None:
        """Set the longer side of an image."""
        if self.longest_edge is not None:
            self.processor.image_processor.size = {"longest_edge": self.longest_edge}

    def frame(self, size: Size) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(size)

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """The image itself; one that would be a single token is enlarged, because the model's own code fails on it where it stands alone."""
        side = self._token_side()
        if max(image.size) > side:
            return image
        scale = 2 * side / max(image.size)
        return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))

    def _token_side(self) -> int:
        return int(self.hf.config.vision_config.patch_size * self.hf.config.spatial_merge_size)

    def merge_vision(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Images have different sizes: pad them to the largest; the model cuts the padding off again."""
        pixels = [p.vision["pixel_values"] for p in prompts]
        height, width = (max(p.shape[side] for p in pixels) for side in (-2, -1))
        padded = [F.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2])) for p in pixels]
        return {"pixel_values": torch.cat(padded), "image_sizes": torch.cat([p.vision["image_sizes"] for p in prompts])}

    def image_cells(self, prompt: Prompt, size: Size) -> Tensor:
        """A grid over the image."""
        rows, columns = (int(pixels) // self._token_side() for pixels in prompt.vision["image_sizes"][0])
        return raster(rows, columns, image_box(size))
