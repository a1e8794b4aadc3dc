"""Words instead of a crop: the control of the paper's cue-modality ablation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from locus_lightning.cue_samplers.base import crop_cue
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.errors import DataError
from locus_lightning.files import lines_of
from locus_lightning.types import Cue, CueWindow, SceneObject, Size, SizeBin

MOST_WORDS = 25
"""A referring expression is shorter than this (paper section 5, cue modality)."""


class TextCues(ObjectCues):
    """The same windows as :class:`ObjectCues`, described in words: the model sees image and expression, no crop.

    Args:
        mix: The share of each size bin; null is the paper's 70 : 30 of tiny and small.
        min_side: The least width and height of a window before any scaling, original pixels (paper: 16).
        padding: See :class:`ObjectCues`.
        augmented: See :class:`ObjectCues`.
        expressions: A file of lines ``{"id": "IMAGE_ID-OBJECT_ID", "text": ...}``, as ``locus data text-cues`` writes it; an id without an
            image goes by the object alone. Null takes each object's label where no other object of its image has the same.
    """

    def __init__(
        self,
        mix: Mapping[SizeBin, float] | None = None,
        min_side: int = 16,
        padding: tuple[float, float] = (0.0, 0.1),
        augmented: list[SizeBin] | None = None,
        expressions: str | None = None,
    ) -> None:
        super().__init__(mix, min_side, padding, scale=(1.0, 1.0), augmented=augmented)
        self.expressions = read_expressions(Path(expressions).expanduser()) if expressions else None

    def sample(self, image_size: Size, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[CueWindow] | None:
        """Windows of the objects that words can single out; ``label`` holds the words."""
        windows = super().sample(image_size, objects, rng) or []
        if self.expressions is not None:
            image_of = {item.id: item.image_id for item in objects}
            words = ((w, self.expressions.of(image_of[w.object_id], w.object_id)) for w in windows)
            return [replace(w, label=text) for w, text in words if text is not None] or None
        labels = Counter(item.label for item in objects)
        return [w for w in windows if w.label and labels[w.label] == 1] or None

    def cue(self, image: Image.Image, window: CueWindow) -> Cue:
        """The words; the crop beside them is for people who look at the run."""
        return cue_in_words(image, window)


def cue_in_words(image: Image.Image, window: CueWindow) -> Cue:
    """The crop with its window's label as the words that the model is shown."""
    return replace(crop_cue(image, window), text=window.label)


@dataclass(frozen=True)
class Expressions:
    """Words for objects, by image and object. Object ids alone can repeat between a training and a validation file.

    Args:
        words: by ``IMAGE_ID-OBJECT_ID``, or by ``OBJECT_ID`` where the file gives no image.
    """

    words: Mapping[str, str]

    def of(self, image_id: int, object_id: int) -> str | None:
        """The words for an object, or None."""
        return self.words.get(f"{image_id}-{object_id}", self.words.get(str(object_id)))


def read_expressions(path: Path) -> Expressions:
    """The expressions of a file.

    Raises:
        DataError: the file cannot be read, or a line is not an object with ``id`` and a ``text`` of 1 to 24 words.
    """
    words: dict[str, str] = {}
    try:
        lines = list(lines_of(path))
    except OSError as cause:
        raise DataError(f"the expressions {path} cannot be read ({cause.strerror}).") from cause
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            key, text = str(row["id"]), str(row["text"]).strip()
        except (ValueError, KeyError, TypeError) as cause:
            raise DataError(f'{path}, line {number}, is not {{"id": ..., "text": ...}} ({cause}).') from cause
        if not 0 < len(text.split()) < MOST_WORDS:
            raise DataError(f"{path}, line {number}: the expression has {len(text.split())} words; give 1 to {MOST_WORDS - 1}.")
        words[key] = text
    return Expressions(words)
