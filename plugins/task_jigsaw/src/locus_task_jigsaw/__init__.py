"""A jigsaw as a training task: the tiles of a picture are shown in random order, and the answer says where each belongs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from locus_lightning.boxes import BoxFrame
from locus_lightning.errors import ConfigError
from locus_lightning.tasks.base import Task
from locus_lightning.types import Content, Sample

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Order = tuple[int, ...]
"""For every place of the grid, row by row, the number of the tile that belongs there, from 1."""


@dataclass(frozen=True)
class JigsawSample(Sample):
    """A cut-up picture: its tiles as they are shown, and the right order."""

    tiles: tuple[Image, ...]
    order: Order


class JigsawTask(Task):
    """Put the shuffled tiles of a picture in order. The score is the share of places with the right tile.

    Args:
        rows: of the grid.
        columns: of the grid.
    """

    answer_kind = "order"
    columns: ClassVar[Mapping[str, str]] = {"score": "places right", "exact": "puzzles solved"}
    rationale = "I compare the edges of the tiles."

    def __init__(self, rows: int = 2, columns: int = 2) -> None:
        if min(rows, columns) < 1 or not 2 <= rows * columns <= 9:
            raise ConfigError(f"JigsawTask has {rows} rows and {columns} columns; give 2 to 9 tiles.")
        self.grid = (rows, columns)

    def sample(self, sample: Sample, rng: np.random.Generator) -> JigsawSample:
        """Cut the picture up and shuffle its tiles."""
        rows, columns = self.grid
        w, h = sample.image.width // columns, sample.image.height // rows
        places = [sample.image.crop((c * w, r * h, (c + 1) * w, (r + 1) * h)) for r in range(rows) for c in range(columns)]
        shown = [int(place) for place in rng.permutation(len(places))]  # tile k + 1 shows the place shown[k]
        order = tuple(shown.index(place) + 1 for place in range(len(places)))
        return JigsawSample(sample.id, sample.image, tuple(places[p] for p in shown), order, quarantined=sample.quarantined)

    def messages(self, sample: JigsawSample, frame: BoxFrame) -> Content:
        """The numbered tiles, then what is asked."""
        tiles = [part for i, tile in enumerate(sample.tiles, 1) for part in (f"\nTile {i}: ", tile)]
        rows, columns = self.grid
        return (
            *tiles,
            f"\nThese are the tiles of one picture, cut into {rows} rows and {columns} columns and shuffled. Give the number of the tile that "
            "belongs to each place, row by row, separated by commas. First think inside <think></think>, then give only the numbers inside "
            "<answer></answer>.",
        )

    def write_answer(self, sample: JigsawSample, frame: BoxFrame) -> str:
        """The numbers, row by row."""
        return ", ".join(map(str, sample.order))

    def read_answer(self, text: str, sample: JigsawSample, frame: BoxFrame) -> Order | None:
        """Every tile exactly once, or None."""
        numbers = tuple(int(number) for number in re.findall(r"[0-9]{1,2}", text))
        return numbers if sorted(numbers) == sorted(sample.order) else None

    def score_answer(self, answer: Order, sample: JigsawSample) -> float:
        """The share of places with the right tile: partial credit."""
        return sum(a == b for a, b in zip(answer, sample.order, strict=True)) / len(sample.order)

    def blind_answers(self, sample: JigsawSample) -> dict[str, Order]:
        """The tiles as they are shown."""
        return {"as shown": tuple(range(1, len(sample.order) + 1))}
