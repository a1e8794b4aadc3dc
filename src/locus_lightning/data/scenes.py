"""Scenes drawn on the fly: shapes, colours, textures and clutter. No files needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from locus_lightning.cue_samplers.base import CueSampler, crop_cue
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.data.source import CueDataset, CueKey, CueSource, Split
from locus_lightning.errors import ConfigError
from locus_lightning.types import Box, CueSample, SceneObject

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 42),
    "green": (40, 150, 66),
    "blue": (38, 84, 200),
    "yellow": (240, 206, 40),
    "orange": (242, 134, 30),
    "purple": (130, 58, 166),
    "white": (244, 244, 240),
    "black": (24, 24, 28),
    "pink": (240, 140, 180),
    "cyan": (50, 190, 200),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
TEXTURES = ("plain", "stripes", "dots", "checks")
_SPLITS: dict[Split, int] = {"train": 0, "val": 1}


@dataclass(frozen=True)
class Look:
    """What an object looks like."""

    shape: str
    colour: str
    texture: str

    @property
    def label(self) -> str:
        """In words, such as "red striped circle"."""
        adjective = {"plain": "", "stripes": "striped ", "dots": "dotted ", "checks": "checked "}[self.texture]
        return f"{self.colour} {adjective}{self.shape}"


class SceneCues(CueSource):
    """Generated scenes; a scene depends on seed, split, epoch and index alone.

    Args:
        image_size: side of the square image, pixels.
        objects: (low, high) number of objects in a scene, inclusive; one becomes the cue, the others are distractors.
        object_size: (low, high) of an object's sides as a fraction of the image's, drawn log-uniformly.
        textures: draw stripes, dots and checks, or plain colours only.
        background: ``gradient`` blends four soft colours, ``plain`` is one grey for all scenes.
        clutter: number of background strokes; they are drawn under the objects and are never cues.
        train_size: scenes an epoch; every epoch draws new ones.
        val_size: held-out scenes, the same ones always.
        cue_sampler: which object becomes the cue.
    """

    def __init__(
        self,
        image_size: int = 192,
        objects: tuple[int, int] = (1, 6),
        object_size: tuple[float, float] = (0.06, 0.3),
        textures: bool = True,
        background: Literal["gradient", "plain"] = "gradient",
        clutter: int = 12,
        train_size: int = 8192,
        val_size: int = 256,
        cue_sampler: CueSampler | None = None,
    ) -> None:
        self.cue_sampler = cue_sampler or ObjectCues()
        if not 1 <= objects[0] <= objects[1]:
            raise ConfigError(f"SceneCues.objects is {objects}; give a low and a high number, 1 <= low <= high.")
        if not 0 < object_size[0] <= object_size[1] <= 1:
            raise ConfigError(f"SceneCues.object_size is {object_size}; give fractions of the image side, 0 < low <= high <= 1.")
        if image_size < 2 * self.cue_sampler.min_side or min(train_size, val_size) < 1 or clutter < 0:
            raise ConfigError(
                f"SceneCues: image_size {image_size} is at least twice cue_sampler.min_side {self.cue_sampler.min_side}; "
                f"train_size {train_size} and val_size {val_size} are at least 1, clutter {clutter} at least 0."
            )
        self.image_size, self.objects, self.object_size = image_size, objects, object_size
        self.textures, self.background, self.clutter = textures, background, clutter
        self.train_size, self.val_size = train_size, val_size

    def dataset(self, split: Split, seed: int) -> CueDataset:
        """See :meth:`CueSource.dataset`."""
        return _Scenes(self, split, seed)

    def draw(self, rng: np.random.Generator) -> tuple[Image.Image, list[SceneObject]]:
        """One scene: the image and its objects, drawn back to front; an object never hides more than a tenth of another's box."""
        image = _background(self.image_size, self.background == "plain", self.clutter, rng)
        found: list[SceneObject] = []
        for i in range(int(rng.integers(self.objects[0], self.objects[1] + 1))):
            box = self._place([o.box for o in found], rng)
            if box is None:
                break
            look = Look(
                SHAPES[int(rng.integers(len(SHAPES)))],
                list(COLOURS)[int(rng.integers(len(COLOURS)))],
                TEXTURES[int(rng.integers(len(TEXTURES)))] if self.textures else "plain",
            )
            _paint(image, box, look)
            found.append(SceneObject(box, look.label, i))
        return image, found

    def _place(self, taken: list[Box], rng: np.random.Generator) -> Box | None:
        low, high = np.log(self.object_size)
        for _ in range(30):
            w, h = (max(3, round(self.image_size * float(np.exp(rng.uniform(low, high))))) for _ in range(2))
            w, h = min(w, 2 * h), min(h, 2 * w)
            x, y = int(rng.integers(self.image_size - w + 1)), int(rng.integers(self.image_size - h + 1))
            box = (float(x), float(y), float(x + w), float(y + h))
            if all(_overlap(box, other) <= 0.1 for other in taken):
                return box
        return None


class _Scenes(CueDataset):
    def __init__(self, source: SceneCues, split: Split, seed: int) -> None:
        self.source, self.split, self.seed = source, split, seed

    def __len__(self) -> int:
        return self.source.train_size if self.split == "train" else self.source.val_size

    def __getitem__(self, key: CueKey) -> CueSample:
        rng = np.random.default_rng([self.seed, _SPLITS[self.split], *key])
        sampler = self.source.cue_sampler
        for _ in range(200):
            image, objects = self.source.draw(rng)
            window = sampler.choose(sampler.sample(image.size, objects, rng) or [], rng)
            if window is not None:
                x1, y1, x2, y2 = window.box
                name = f"scene-{self.split}-{key[0]}-{key[1]}"
                return CueSample(name, image, crop_cue(image, window), (float(x1), float(y1), float(x2), float(y2)))
        raise ConfigError(
            f"SceneCues draws no object that the cue sampler takes (mix {sampler.mix}, min_side {sampler.min_side}): "
            f"widen object_size {self.source.object_size} or the mix."
        )


def _overlap(a: Box, b: Box) -> float:
    """Intersection over the smaller box."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0.0, w) * max(0.0, h) / smaller


def _background(side: int, plain: bool, clutter: int, rng: np.random.Generator) -> Image.Image:
    """A grey, or a soft gradient; thin strokes on it."""
    corners = np.full((1, 1, 3), 122) if plain else rng.integers(90, 190, (2, 2, 3))
    corners = corners.astype(np.uint8)
    image = Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for _ in range(clutter):
        x, y = rng.integers(0, side, 2)
        dx, dy = rng.integers(-side // 8, side // 8 + 1, 2)
        grey = tuple(int(v) for v in rng.integers(70, 210, 3))
        pen.line((int(x), int(y), int(x + dx), int(y + dy)), fill=grey, width=max(1, side // 96))
    return image


def _paint(image: Image.Image, box: Box, look: Look) -> None:
    """Draw an object so that it touches all four sides of its box."""
    x1, y1, x2, y2 = (int(v) for v in box)
    w, h = x2 - x1, y2 - y1
    mask = Image.new("L", (w, h), 0)
    _outline(ImageDraw.Draw(mask), look.shape, w, h)
    rgb = COLOURS[look.colour]
    image.paste(_fill(w, h, rgb, look.texture), (x1, y1), mask)


def _outline(pen: ImageDraw.ImageDraw, shape: str, w: int, h: int) -> None:
    r, b = w - 1, h - 1
    if shape == "circle":
        pen.ellipse((0, 0, r, b), fill=255)
    elif shape == "square":
        pen.rectangle((0, 0, r, b), fill=255)
    elif shape == "triangle":
        pen.polygon([(r / 2, 0), (r, b), (0, b)], fill=255)
    elif shape == "diamond":
        pen.polygon([(r / 2, 0), (r, b / 2), (r / 2, b), (0, b / 2)], fill=255)
    elif shape == "cross":
        pen.rectangle((0, h // 3, r, b - h // 3), fill=255)
        pen.rectangle((w // 3, 0, r - w // 3, b), fill=255)
    else:
        pen.ellipse((0, 0, r, b), fill=255)
        pen.ellipse((w * 0.3, h * 0.3, w * 0.7, h * 0.7), fill=0)


def _fill(w: int, h: int, rgb: tuple[int, int, int], texture: str) -> Image.Image:
    y, x = np.mgrid[0:h, 0:w]
    step = max(2, min(w, h) // 5)
    dark = {
        "plain": np.zeros((h, w), bool),
        "stripes": (x + y) // step % 2 == 0,
        "dots": (x % (2 * step) - step) ** 2 + (y % (2 * step) - step) ** 2 < (step * 0.6) ** 2,
        "checks": (x // step + y // step) % 2 == 0,
    }[texture]
    pixels = np.where(dark[..., None], np.array(rgb) * 0.55, np.array(rgb))
    return Image.fromarray(pixels.astype(np.uint8))
