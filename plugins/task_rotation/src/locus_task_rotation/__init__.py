"""Rotation as a training task: a picture is shown after a quarter turn, and the answer says which."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from PIL.Image import Transpose

from locus_lightning.boxes import BoxFrame
from locus_lightning.tasks.base import Task
from locus_lightning.types import Content, Sample

if TYPE_CHECKING:
    import numpy as np

TURNS = {0: None, 90: Transpose.ROTATE_270, 180: Transpose.ROTATE_180, 270: Transpose.ROTATE_90}
"""Degrees clockwise, and how PIL makes them."""


@dataclass(frozen=True)
class RotationSample(Sample):
    """``image`` is the rotated picture; ``degrees`` says by how much it was turned clockwise."""

    degrees: int


class RotationTask(Task):
    """Say by how many degrees a picture was rotated clockwise: 0, 90, 180 or 270. The score is 1 for the right number, else 0."""

    answer_kind = "degrees"
    columns: ClassVar[Mapping[str, str]] = {"score": "accuracy"}
    rationale = "I look for what should point upwards."

    def sample(self, sample: Sample, rng: np.random.Generator) -> RotationSample:
        """Rotate the picture at random."""
        degrees = list(TURNS)[int(rng.integers(len(TURNS)))]
        turn = TURNS[degrees]
        image = sample.image if turn is None else sample.image.transpose(turn)
        return RotationSample(sample.id, image, degrees, quarantined=sample.quarantined)

    def messages(self, sample: RotationSample, frame: BoxFrame) -> Content:
        """The picture, then what is asked."""
        return (
            sample.image,
            "\nThis picture may have been rotated. By how many degrees was it turned clockwise: 0, 90, 180 or 270? First think inside "
            "<think></think>, then give only the number inside <answer></answer>.",
        )

    def write_answer(self, sample: RotationSample, frame: BoxFrame) -> str:
        """The number."""
        return str(sample.degrees)

    def read_answer(self, text: str, sample: RotationSample, frame: BoxFrame) -> int | None:
        """One of the four numbers, with or without its unit, or None."""
        match = re.fullmatch(r"\s*(0|90|180|270)\s*(?:°|degrees)?\s*", text)
        return int(match[1]) if match else None

    def score_answer(self, answer: int, sample: RotationSample) -> float:
        """Exact match."""
        return float(answer == sample.degrees)

    def blind_answers(self, sample: RotationSample) -> dict[str, int]:
        """The same answer always."""
        return {f"always {degrees}": degrees for degrees in TURNS}
