"""Random crops: the control of the paper's cue-source ablation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from locus_lightning.boxes import SIZE_BINS, size_bin
from locus_lightning.cue_samplers.base import CueSampler
from locus_lightning.errors import ConfigError
from locus_lightning.types import CueWindow, SceneObject, Size, SizeBin


class RandomCropCues(CueSampler):
    """Windows placed at random, whatever is in them, with the same mix of sizes.

    Args:
        mix: The share of each size bin; null is the paper's 70 : 30 of tiny and small.
        min_side: The least width and height of a window before any scaling, original pixels (paper: 16).
        per_image: The number of windows that are drawn from one image.
        aspect: The (low, high) end of width over height, drawn log-uniformly (our choice).
    """

    about_objects = False

    def __init__(
        self,
        mix: Mapping[SizeBin, float] | None = None,
        min_side: int = 16,
        per_image: int = 4,
        aspect: tuple[float, float] = (0.5, 2.0),
    ) -> None:
        super().__init__(mix, min_side)
        if per_image < 1 or not 0 < aspect[0] <= aspect[1]:
            raise ConfigError(f"RandomCropCues: per_image is {per_image} (at least 1) and aspect {aspect} (0 < low <= high).")
        self.per_image, self.aspect = per_image, aspect

    def sample(self, image_size: Size, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[CueWindow] | None:
        """Up to ``per_image`` windows; ``objects`` is not looked at."""
        windows = [self._window(image_size, rng) for _ in range(self.per_image)]
        return [w for w in windows if w is not None] or None

    def _window(self, image_size: Size, rng: np.random.Generator) -> CueWindow | None:
        wanted = list(self.mix)[int(rng.choice(len(self.mix), p=list(self.mix.values())))]
        low, high = SIZE_BINS[wanted]
        area = float(rng.uniform(low, min(high, 1.0))) * image_size[0] * image_size[1]
        aspect = math.exp(rng.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
        w = min(image_size[0], max(self.min_side, round(math.sqrt(area * aspect))))
        h = min(image_size[1], max(self.min_side, round(math.sqrt(area / aspect))))
        x, y = int(rng.integers(image_size[0] - w + 1)), int(rng.integers(image_size[1] - h + 1))
        window = self.integer_window((x, y, x + w, y + h), image_size)
        if window is None or size_bin(window, image_size) not in self.mix:
            return None
        return CueWindow(box=window, size_bin=size_bin(window, image_size))
