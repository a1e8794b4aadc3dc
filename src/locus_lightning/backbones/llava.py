"""LLaVA-1.5 and its relatives (``LlavaForConditionalGeneration``)."""

from __future__ import annotations

from typing import Any, Literal

from PIL import Image
from torch import Tensor

from locus_lightning.backbones import checkpoint as checkpoint_files
from locus_lightning.backbones import toy
from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.boxes import BoxFrame, raster
from locus_lightning.errors import CheckpointError
from locus_lightning.types import Prompt, Size


class LlavaBackbone(HFBackbone):
    """LLaVA: every image is padded to a square, never centre-cropped, and scaled to the tower's size.

    Args:
        coordinates: ``unit`` writes fractions of the padded square, which is LLaVA-1.5's own convention. ``pixels`` writes whole pixels
            of the tower's input.
        decimals: The number of digits after the point with ``unit``. LLaVA-1.5 was trained with 2. On a 640 px photo that is a step of
            6 px, too coarse for a 16 px cue, where 3 helps.
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("llava",)
    convention = Convention("0-1, square-padded", "[x1, y1, x2, y2] from 0 to 1", True, "fixed size")
    images_in_text = True
    fixed_size = True

    def __init__(self, checkpoint: str, coordinates: Literal["unit", "pixels"] = "unit", decimals: int = 2, **kwargs: Any) -> None:
        super().__init__(checkpoint, **kwargs)
        self.coordinates, self.decimals = coordinates, decimals

    def check(self) -> None:
        """See :meth:`Backbone.check`; Pixtral-12B calls itself a LLaVA, but its images keep their shape.

        Raises:
            CheckpointError: the checkpoint's tower is Pixtral's.
        """
        super().check()
        if self.checkpoint.startswith(toy.PREFIX):
            return
        tower = checkpoint_files.config_of(self.checkpoint, self.trust_remote_code).vision_config.model_type
        if tower == "pixtral":
            raise CheckpointError(
                f"backbone.checkpoint {self.checkpoint!r} is a LLaVA with a Pixtral tower, which is not supported; take a Mistral 3 model."
            )

    def prepare_processor(self) -> None:
        """The square is whole already: no centre crop."""
        self.processor.image_processor.do_center_crop = False
        side = self._side()
        self.processor.image_processor.size = {"height": side, "width": side}

    def _side(self) -> int:
        return int(self.hf.config.vision_config.image_size)

    def frame(self, size: Size) -> BoxFrame:
        """Fractions, or pixels, of the square-padded image."""
        if self.coordinates == "pixels":
            return BoxFrame.square_padded(size, self._side())
        return BoxFrame.padded_fractions(size, self.decimals)

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """Centre on a square of the longer side, filled with the processor's mean colour."""
        if image.width == image.height:
            return image
        side = max(image.size)
        fill = tuple(round(255 * c) for c in self.processor.image_processor.image_mean)
        square = Image.new("RGB", (side, side), fill)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square

    def image_cells(self, prompt: Prompt, size: Size) -> Tensor:
        """A grid over the padded square."""
        side, count = max(size), self._side() // self.hf.config.vision_config.patch_size
        left, top = (side - size[0]) // 2, (side - size[1]) // 2
        return raster(count, count, (-float(left), -float(top), float(side - left), float(side - top)))
