"""Object regions with the paper's mix of sizes: the default cue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from locus_lightning.boxes import clip_box, size_bin
from locus_lightning.cue_samplers.base import CueSampler
from locus_lightning.errors import ConfigError
from locus_lightning.types import Box, CueWindow, SceneObject, Size, SizeBin


class ObjectCues(CueSampler):
    """Windows around annotated objects (paper section 4).

    Args:
        mix: The share of each size bin; null is the paper's 70 : 30 of tiny and small.
        min_side: The least width and height of a window before any scaling, original pixels (paper: 16).
        padding: The (low, high) end of the uniform distribution of a cue's margin, as a fraction of the box's width and height on every
            side; it is drawn once a sample (our decision 3).
        scale: The (low, high) end of the uniform distribution of a cue's resizing.
        augmented: The size bins of objects that get padding and scaling; null is tiny ones only, as in the paper.
        scale_target: ``cue`` resizes the cue image after cropping (our decision 2); ``box`` resizes the window about its centre before
            it is clipped.
    """

    def __init__(
        self,
        mix: Mapping[SizeBin, float] | None = None,
        min_side: int = 16,
        padding: tuple[float, float] = (0.0, 0.1),
        scale: tuple[float, float] = (0.8, 2.0),
        scale_target: Literal["cue", "box"] = "cue",
        augmented: list[SizeBin] | None = None,
    ) -> None:
        super().__init__(mix, min_side)
        if not 0 <= padding[0] <= padding[1]:
            raise ConfigError(f"ObjectCues.padding is {padding}; give a low and a high fraction, 0 <= low <= high.")
        if not 0 < scale[0] <= scale[1]:
            raise ConfigError(f"ObjectCues.scale is {scale}; give a low and a high factor, 0 < low <= high.")
        self.padding, self.scale, self.scale_target = padding, scale, scale_target
        self.augmented = ["tiny"] if augmented is None else augmented

    def sample(self, image_size: Size, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[CueWindow] | None:
        """One window an object, where the object is large enough and its size bin is wanted."""
        paddings = rng.uniform(*self.padding, len(objects)).tolist()
        scales = rng.uniform(*self.scale, len(objects)).tolist()
        windows = (self._window(image_size, *drawn) for drawn in zip(objects, paddings, scales, strict=True))
        return [w for w in windows if w is not None and w.size_bin in self.mix] or None

    def _window(self, image_size: Size, target: SceneObject, padding: float, scale: float) -> CueWindow | None:
        augment = size_bin(clip_box(target.box, image_size), image_size) in self.augmented
        box = target.box
        if augment:
            factor = (1 + 2 * padding) * (scale if self.scale_target == "box" else 1.0)
            box = _about_centre(box, factor)
        window = self.integer_window(box, image_size)
        if window is None:
            return None
        return CueWindow(
            box=window,
            size_bin=size_bin(window, image_size),
            scale=scale if augment and self.scale_target == "cue" else 1.0,
            object_box=target.box,
            label=target.label,
            object_id=target.id,
        )


def _about_centre(box: Box, factor: float) -> Box:
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    w, h = (box[2] - box[0]) * factor / 2, (box[3] - box[1]) * factor / 2
    return (cx - w, cy - h, cx + w, cy + h)
