"""The cue sampler contract, and the cropping that all samplers share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from PIL import Image

from locus_lightning.boxes import crop_window
from locus_lightning.errors import ConfigError
from locus_lightning.types import Box, Cue, CueWindow, IntBox, SceneObject, Size, SizeBin

PAPER_MIX: dict[SizeBin, float] = {"tiny": 0.7, "small": 0.3}
"""Tiny : small = 70 : 30 (paper section 4)."""


class CueSampler(ABC):
    """Proposes windows of an image and states the mix of sizes a data set is to hold.

    Args:
        mix: share of each size bin (``tiny`` < 1 %, ``small`` 1-5 %, ``medium`` 5-10 %, ``large`` > 10 % of the
            image area); the shares are normalised. Windows of a bin that is not named are not used.
        min_side: least width and height of a window before any scaling, original pixels (paper: 16).
    """

    def __init__(self, mix: Mapping[SizeBin, float] | None = None, min_side: int = 16) -> None:
        mix = dict(PAPER_MIX if mix is None else mix)
        unknown = set(mix) - set(get_args(SizeBin))
        total = sum(mix.values())
        if unknown or not total > 0 or min(mix.values()) < 0:
            raise ConfigError(
                f"cue_sampler.mix is {mix}; give each of tiny, small, medium, large a share of 0 or more, at least one above 0."
            )
        if min_side < 1:
            raise ConfigError(f"cue_sampler.min_side is {min_side}; it is at least 1 pixel.")
        self.mix: dict[SizeBin, float] = {name: share / total for name, share in mix.items() if share > 0}
        self.min_side = min_side

    @abstractmethod
    def sample(self, image_size: Size, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[CueWindow] | None:
        """Windows of one image: inside the image, integer, at least ``min_side``; None where there is none.

        All randomness comes from ``rng``, which the caller seeds from seed, epoch and index.
        """

    def choose(self, windows: Sequence[CueWindow], rng: np.random.Generator) -> CueWindow | None:
        """One window, its size bin drawn by ``mix`` among the bins that are present."""
        by_bin = {name: [w for w in windows if w.size_bin == name] for name in self.mix}
        present = [name for name, found in by_bin.items() if found]
        if not present:
            return None
        shares = np.array([self.mix[name] for name in present])
        picked = by_bin[present[int(rng.choice(len(present), p=shares / shares.sum()))]]
        return picked[int(rng.integers(len(picked)))]

    def cue(self, image: Image.Image, window: CueWindow) -> Cue:
        """The cue of a window: its crop, unless a sampler shows something else."""
        return crop_cue(image, window)

    def integer_window(self, box: Box, image_size: Size) -> IntBox | None:
        """``box`` rounded outwards and clipped, or None when a side is under ``min_side``."""
        window = (
            max(0, math.floor(box[0])),
            max(0, math.floor(box[1])),
            min(image_size[0], math.ceil(box[2])),
            min(image_size[1], math.ceil(box[3])),
        )
        wide_enough = window[2] - window[0] >= self.min_side and window[3] - window[1] >= self.min_side
        return window if wide_enough else None


def crop_cue(image: Image.Image, window: CueWindow) -> Cue:
    """The cue of a window: its crop, resized by its ``scale``."""
    return Cue(crop_window(image, window), window)
