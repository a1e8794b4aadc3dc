"""GLM-4.1V, GLM-4.5V and GLM-4.6V (``Glm4vForConditionalGeneration`` and its relatives)."""

from __future__ import annotations

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.qwen import QwenVLBackbone
from locus_lightning.boxes import BoxFrame
from locus_lightning.types import Size


class Glm4VBackbone(QwenVLBackbone):
    """GLM-4V: answers are thousandths of the image's width and height, which its cards write between box tokens.

    Args:
        kwargs: min_pixels, max_pixels of an image (the processor's own bounds count it twice, as two frames), and those of :class:`HFBackbone`.
    """

    model_types = ("glm4v", "glm4v_moe", "glm46v")
    convention = Convention("0-1000", "<|begin_of_box|>[[x1, y1, x2, y2]]<|end_of_box|>", True, "max_pixels")

    def prepare_processor(self) -> None:
        """Set the pixel bounds."""
        self.set_bounds(self.processor.image_processor.temporal_patch_size)

    def frame(self, size: Size) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(size)
