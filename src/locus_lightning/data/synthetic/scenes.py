"""Scenes drawn on the fly: shapes, colours, textures and clutter. No files needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from locus_lightning.cue_samplers.base import CueSampler, Picture, checked_windows
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.data.source import SPLITS, CueDataset, CueKey, CueSource, Split
from locus_lightning.data.synthetic.drawing import COLOURS, SHAPES, TEXTURES, Look, background, paint
from locus_lightning.errors import ConfigError
from locus_lightning.types import Box, CueSample, SceneObject


@dataclass(frozen=True)
class Scene:
    """A drawn image with its objects: boxes in pixels, and looks."""

    image: Image.Image
    boxes: tuple[Box, ...]
    looks: tuple[Look, ...]

    @property
    def objects(self) -> list[SceneObject]:
        """As a cue sampler is given them."""
        return [SceneObject(box, look.label, i) for i, (box, look) in enumerate(zip(self.boxes, self.looks, strict=True))]


class SceneCues(CueSource):
    """Generated scenes; a scene depends on seed, split, epoch and index alone.

    Args:
        image_size: The side of the square image, pixels.
        objects: The (lowest, highest) number of objects in a scene. One becomes the cue, the others are distractors.
        object_size: The (smallest, largest) side of an object as a fraction of the image's, drawn log-uniformly.
        textures: Whether objects have stripes, dots and checks, or plain colours only.
        colours: The names of the colours that objects have; null is all.
        shapes: The names of the shapes that objects have; null is all.
        background: ``gradient`` blends four soft colours; ``plain`` is one grey for all scenes.
        clutter: The number of background strokes. They are drawn under the objects and are never cues.
        train_size: The number of scenes an epoch; every epoch draws new ones.
        val_size: The number of held-out scenes, which are always the same.
        cue_sampler: Which object becomes the cue; null is ``ObjectCues``.
    """

    def __init__(
        self,
        image_size: int = 192,
        objects: tuple[int, int] = (1, 6),
        object_size: tuple[float, float] = (0.06, 0.3),
        textures: bool = True,
        colours: list[str] | None = None,
        shapes: list[str] | None = None,
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
        for name, wanted, known in (("colours", colours, tuple(COLOURS)), ("shapes", shapes, SHAPES)):
            if wanted is not None and (not wanted or set(wanted) - set(known)):
                raise ConfigError(f"SceneCues.{name} is {wanted}; choose from {', '.join(known)}.")
        self.image_size, self.objects, self.object_size = image_size, objects, object_size
        self.colours, self.shapes = tuple(colours or COLOURS), tuple(shapes or SHAPES)
        self.textures, self.background, self.clutter = textures, background, clutter
        self.train_size, self.val_size = train_size, val_size

    def dataset(self, split: Split, seed: int) -> CueDataset:
        """See :meth:`CueSource.dataset`."""
        return _Scenes(self, split, seed)

    def draw(self, rng: np.random.Generator) -> Scene:
        """One scene; its objects are drawn back to front and never hide more than a tenth of one another's boxes."""
        image = background(self.image_size, self.background == "plain", self.clutter, rng)
        boxes: list[Box] = []
        looks: list[Look] = []
        for _ in range(int(rng.integers(self.objects[0], self.objects[1] + 1))):
            box = self._place(boxes, rng)
            if box is None:
                break
            look = Look(
                self.shapes[int(rng.integers(len(self.shapes)))],
                self.colours[int(rng.integers(len(self.colours)))],
                TEXTURES[int(rng.integers(len(TEXTURES)))] if self.textures else "plain",
            )
            paint(image, box, look)
            boxes.append(box)
            looks.append(look)
        return Scene(image, tuple(boxes), tuple(looks))

    def cue(self, name: str, rng: np.random.Generator) -> CueSample:
        """One sample from a scene of its own. Its size bin is drawn by the sampler's mix, then scenes until one has such an object; bins that 20
        scenes do not have are passed over. Where that leaves none, an object of any wanted bin will do, in up to 2,000 scenes.

        Raises:
            ConfigError: no scene holds an object that the cue sampler takes.
        """
        sampler = self.cue_sampler
        shares = np.array(list(sampler.mix.values()))
        order = rng.choice(list(sampler.mix), np.count_nonzero(shares), replace=False, p=shares / shares.sum()).tolist()
        for wanted, scenes in (*(({name}, 20) for name in order), (set(order), 2000)):
            for _ in range(scenes):
                scene = self.draw(rng)
                windows = checked_windows(sampler, Picture(scene.image.size, name, open_image=scene.image.copy), scene.objects, rng)
                window = sampler.choose([w for w in windows if w.size_bin in wanted], rng)
                if window is not None:
                    x1, y1, x2, y2 = window.box
                    others = tuple(other for other in windows if other is not window)
                    box = (float(x1), float(y1), float(x2), float(y2))
                    return CueSample(name, scene.image, sampler.cue(scene.image, window), box, others=others)
        raise ConfigError(
            f"SceneCues draws no object that the cue sampler takes (mix {sampler.mix}, min_side {sampler.min_side}): "
            f"widen object_size {self.object_size} or the mix."
        )

    def _place(self, occupied: list[Box], rng: np.random.Generator) -> Box | None:
        low, high = np.log(self.object_size)
        for u, v, a, b in rng.random((30, 4)).tolist():
            w, h = (max(3, round(self.image_size * float(np.exp(low + (high - low) * r)))) for r in (u, v))
            w, h = min(w, 2 * h), min(h, 2 * w)
            x, y = int(a * (self.image_size - w + 1)), int(b * (self.image_size - h + 1))
            box = (float(x), float(y), float(x + w), float(y + h))
            if all(_overlap(box, other) <= 0.1 for other in occupied):
                return box
        return None


class _Scenes(CueDataset):
    def __init__(self, source: SceneCues, split: Split, seed: int) -> None:
        self.source, self.split, self.seed = source, split, seed

    def __len__(self) -> int:
        return self.source.train_size if self.split == "train" else self.source.val_size

    def __getitem__(self, key: CueKey) -> CueSample:
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), *key])
        return self.source.cue(f"scene-{self.split}-{key[0]}-{key[1]}", rng)


def _overlap(a: Box, b: Box) -> float:
    """Intersection over the smaller box."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0.0, w) * max(0.0, h) / smaller
