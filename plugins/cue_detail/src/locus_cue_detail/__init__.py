"""DetailCues: crops where a picture has most detail, for pictures without annotated objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from locus_lightning.boxes import SIZE_BINS, size_bin
from locus_lightning.cue_samplers.base import CueSampler, Picture
from locus_lightning.errors import ConfigError
from locus_lightning.types import CueWindow, SceneObject, SizeBin


class DetailCues(CueSampler):
    """Windows with much detail, measured by the mean step of brightness from pixel to pixel; where they lie is drawn at random.

    A crop of plain sky fits in many places and teaches nothing. Objects are not looked at, so any folder of pictures will do.

    Args:
        mix: The share of each size bin.
        min_side: The least side of a window, pixels.
        tries: How many windows are drawn for each that is kept: the more, the more detail it has.
        windows: How many windows an image gives at most.
    """

    about_objects = False  # windows belong to no object

    def __init__(self, mix: Mapping[SizeBin, float] | None = None, min_side: int = 16, tries: int = 16, windows: int = 2) -> None:
        super().__init__(mix, min_side)
        if tries < 1 or windows < 1:
            raise ConfigError(f"DetailCues: tries is {tries} and windows {windows}; both are at least 1.")
        self.tries, self.windows = tries, windows

    def look(self, picture: Picture, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[CueWindow] | None:
        """The most detailed of ``tries`` windows, ``windows`` times; their size bins are drawn by ``mix``."""
        detail = _detail(np.asarray(picture.pixels.convert("L"), dtype=np.float32))
        names, shares = list(self.mix), np.array(list(self.mix.values()), dtype=float)
        kept = []
        for _ in range(self.windows):
            wanted = names[int(rng.choice(len(names), p=shares / shares.sum()))]
            drawn = [w for _ in range(self.tries) if (w := self._draw(picture.size, wanted, rng)) is not None]
            if drawn:
                kept.append(max(drawn, key=lambda window: _mean(detail, window.box)))
        return list({window.box: window for window in kept}.values()) or None

    def _draw(self, size: tuple[int, int], wanted: SizeBin, rng: np.random.Generator) -> CueWindow | None:
        """A window of a size bin, anywhere; None where it comes out too small or in another bin."""
        low, high = SIZE_BINS[wanted]
        width, height = size
        area, aspect = rng.uniform(max(low, 1e-4), min(high, 0.25)) * width * height, np.exp(rng.uniform(-0.4, 0.4))
        w, h = min(width, (area * aspect) ** 0.5), min(height, (area / aspect) ** 0.5)
        x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
        box = self.integer_window((float(x), float(y), float(x + w), float(y + h)), size)
        return CueWindow(box, size_bin(box, size)) if box is not None and size_bin(box, size) == wanted else None


def _detail(grey: np.ndarray) -> np.ndarray:
    """Sums of the steps of brightness above and to the left of every pixel, so that a window's sum takes four numbers."""
    steps = np.zeros_like(grey)
    steps[:, 1:] += np.abs(np.diff(grey, axis=1))
    steps[1:] += np.abs(np.diff(grey, axis=0))
    return np.pad(steps.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _mean(sums: np.ndarray, box: tuple[int, int, int, int]) -> float:
    x1, y1, x2, y2 = box
    total = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
    return float(total) / ((x2 - x1) * (y2 - y1))
