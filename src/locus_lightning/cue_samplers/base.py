"""The cue sampler contract, and the cropping that all samplers share."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, get_args

import numpy as np
from PIL import Image

from locus_lightning.boxes import MOST_ASPECT, crop_window, size_bin
from locus_lightning.errors import ConfigError, PictureError, PluginError
from locus_lightning.types import Box, Cue, CueWindow, IntBox, SceneObject, Size, SizeBin

PAPER_MIX: dict[SizeBin, float] = {"tiny": 0.7, "small": 0.3}
"""Tiny : small = 70 : 30 (paper section 4)."""


class Picture:
    """An image as a cue sampler is given it: its size at once, its pixels when they are asked for.

    Args:
        size: (width, height).
        name: its path, or what it is called.
        image_id: of its annotation file.
        open_image: gives the image, RGB.
    """

    def __init__(self, size: Size, name: str, image_id: int = 0, open_image: Callable[[], Image.Image] | None = None) -> None:
        self.size, self.name, self.image_id = size, name, image_id
        self._open = open_image

    @cached_property
    def pixels(self) -> Image.Image:
        """The image, opened once.

        Raises:
            PictureError: it cannot be used.
        """
        if self._open is None:
            raise PictureError("its pixels are not at hand here")
        return self._open()


class CueSampler(ABC):  # noqa: B024 - one of two methods is overridden
    """Proposes windows of an image and states the mix of sizes a data set is to hold. Override :meth:`sample`, or :meth:`look` where windows
    depend on the pixels.

    :func:`checked_windows` holds every window against what :meth:`sample` promises.

    Args:
        mix: share of each size bin (``tiny`` < 1 %, ``small`` 1-5 %, ``medium`` 5-10 %, ``large`` > 10 % of the
            image area); the shares are normalised. Windows of a bin that is not named are not used.
        min_side: least width and height of a window before any scaling, original pixels (paper: 16).
    """

    about_objects: ClassVar[bool] = True
    """Whether each window belongs to one object; the counts of what was left out then say why an object gave none."""

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

    def sample(self, image_size: Size, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[CueWindow] | None:
        """Windows of one image: inside the image, integer, at least ``min_side``; None where there is none.

        All randomness comes from ``rng``, which the caller seeds from seed, epoch and index.
        """
        raise ConfigError(f"the cue sampler {type(self).__name__} overrides neither sample() nor look().")

    def look(self, picture: Picture, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[CueWindow] | None:
        """Windows of one image, as :meth:`sample`; ``picture.pixels`` opens it, which costs time where windows of a whole data set are drawn."""
        return self.sample(picture.size, objects, rng)

    def choose(self, windows: Sequence[CueWindow], rng: np.random.Generator) -> CueWindow | None:
        """One window, its size bin drawn by ``mix`` among the bins that are present."""
        by_bin = {name: [w for w in windows if w.size_bin == name] for name in self.mix}
        present = [name for name, samples in by_bin.items() if samples]
        if not present:
            return None
        shares = np.array([self.mix[name] for name in present])
        picked = by_bin[present[int(rng.choice(len(present), p=shares / shares.sum()))]]
        return picked[int(rng.integers(len(picked)))]

    def cue(self, image: Image.Image, window: CueWindow) -> Cue:
        """The cue of a window: its crop, unless a sampler shows something else."""
        return crop_cue(image, window)

    def integer_window(self, box: Box, image_size: Size) -> IntBox | None:
        """``box`` rounded outwards and clipped, or None when a side is under ``min_side`` or the window is a sliver that no model takes."""
        window = (
            max(0, math.floor(box[0])),
            max(0, math.floor(box[1])),
            min(image_size[0], math.ceil(box[2])),
            min(image_size[1], math.ceil(box[3])),
        )
        short, long = sorted((window[2] - window[0], window[3] - window[1]))
        return window if short >= self.min_side and long <= MOST_ASPECT * short else None


def checked_windows(sampler: CueSampler, picture: Picture, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[CueWindow]:
    """A sampler's windows of one image, each held against the contract: what training and ``check_cue_sampler`` rely on.

    Args:
        sampler: a built-in or a plugin's.
        picture: the image.
        objects: of the image.
        rng: see :meth:`CueSampler.sample`.

    Raises:
        PictureError: the sampler looks at the pixels, and they cannot be used.
        PluginError: the sampler raised, or a window is none that can be trained on; names sampler, image and window.
    """
    kind, image_size = type(sampler), picture.size
    what = f"the cue sampler {kind.__name__} ({kind.__module__}), image {picture.name} of {image_size[0]}x{image_size[1]} px"
    if not hasattr(sampler, "mix"):
        raise PluginError(f"{what}: it has no mix; call super().__init__(mix, min_side) in its __init__.")
    try:
        windows = sampler.look(picture, objects, rng)
    except (ConfigError, PictureError):
        raise
    except Exception as cause:
        raise PluginError(f"{what}: it raised {type(cause).__name__}: {cause}") from cause
    if windows is None:
        return []
    if not isinstance(windows, list | tuple):
        raise PluginError(f"{what}: it gave {windows!r}; sample() returns a list of CueWindow, or None.")
    for window in windows:
        if (fault := _fault(window, image_size, sampler.min_side)) is not None:
            raise PluginError(f"{what}: {fault}")
    return list(windows)


def _fault(window: object, image_size: Size, min_side: int) -> str | None:
    """What is wrong with a window, or None."""
    if not isinstance(window, CueWindow):
        return f"it gave {window!r} where a CueWindow belongs."
    box = window.box
    if len(box) != 4 or not all(type(v) is int for v in box):
        return f"the window {box} is not four Python integers."
    x1, y1, x2, y2 = box
    if not (0 <= x1 < x2 <= image_size[0] and 0 <= y1 < y2 <= image_size[1]):
        return f"the window {box} is empty or reaches beyond the image."
    if min(x2 - x1, y2 - y1) < min_side:
        return f"the window {box} has a side under min_side {min_side}."
    right = size_bin((x1, y1, x2, y2), image_size)
    if window.size_bin != right:
        return f"the window {box} is filed under {window.size_bin}, and is {right}."
    if not (math.isfinite(window.scale) and window.scale > 0):
        return f"the window {box} has the scale {window.scale}; it is above 0."
    return None


def crop_cue(image: Image.Image, window: CueWindow) -> Cue:
    """The cue of a window: its crop, resized by its ``scale``."""
    return Cue(crop_window(image, window), window)
