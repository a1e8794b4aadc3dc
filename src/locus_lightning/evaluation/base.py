"""What a benchmark is: items read from the dataset's own files, a way to ask, a way to read and score an answer."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

from PIL import Image

from locus_lightning.backbones.base import Backbone
from locus_lightning.data.images import open_rgb
from locus_lightning.errors import PictureError
from locus_lightning.evaluation.extract import extract_letter, extract_yes_no
from locus_lightning.tasks.base import Task
from locus_lightning.tasks.question_answering import QuestionAnswering
from locus_lightning.types import Box, CueSample, Question

log = logging.getLogger(__name__)

LETTERS = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Item:
    """One question of a benchmark; the picture is opened when it is needed.

    ``label`` is what is right: a letter, or yes or no; empty where ``boxes`` are what is asked for. ``options`` by letter. ``boxes`` of the
    targets, original pixels, may be empty. ``facts`` are what a benchmark groups its figures by.
    """

    id: str
    kind: str
    image: Path | bytes
    text: str
    label: str
    options: Mapping[str, str] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def picture(self) -> Image.Image:
        """The image, RGB, as viewers show it.

        Raises:
            PictureError: it cannot be used.
        """
        return open_rgb(self.image)

    def question(self, instruction: str = "") -> Question:
        """As a model is asked, with ``instruction`` behind the words."""
        return Question(
            self.id, self.picture(), (self.text + instruction).replace("{", "{{").replace("}", "}}"), self.label, kind=self.kind
        )


@dataclass(frozen=True)
class Scored:
    """An answered item: the whole text as it was written, what was read from it, and its score in [0, 1]."""

    item: Item
    text: str
    extracted: str | None
    score: float


class Benchmark(ABC):
    """Reads a dataset's own files, asks, scores.

    Args:
        folder: where the files are.
    """

    name: ClassVar[str]
    where: ClassVar[str]
    """Where to get it and how to lay it out: said when it is missing."""
    max_new_tokens: ClassVar[int] = 64
    pictures_of: ClassVar[str] = ""
    """The collection of photos that its pictures belong to, where models are commonly trained on that collection."""
    task: Task = QuestionAnswering()
    """How its questions become messages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.malformed: list[str] = []

    @abstractmethod
    def load(self) -> list[Item]:
        """All items; rows that are not of the format are noted in ``malformed`` and left out.

        Raises:
            DataError: the files are not there.
        """

    def ask(self, item: Item, backbone: Backbone, instruction: str) -> Question | CueSample:
        """What the model is shown."""
        return item.question(instruction)

    @abstractmethod
    def read(self, item: Item, text: str, backbone: Backbone) -> tuple[str | None, float]:
        """What an answer says, and its score."""

    def figures(self, rows: Sequence[Scored]) -> dict[str, float]:
        """Named figures in [0, 1]; ``score`` is the benchmark's own headline."""
        kinds: defaultdict[str, list[float]] = defaultdict(list)
        for row in rows:
            kinds[row.item.kind].append(row.score)
        return {"score": mean(row.score for row in rows), **{kind: mean(scores) for kind, scores in sorted(kinds.items()) if kind}}

    def note(self, where: str, cause: object) -> None:
        """A row that is left out."""
        self.malformed.append(f"{where}: {cause if isinstance(cause, str) else f'{type(cause).__name__}: {cause}'}")


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` of each kind, the first ones."""
    counts: dict[str, int] = {}
    chosen = []
    for item in items:
        counts[item.kind] = counts.get(item.kind, 0) + 1
        if limit is None or counts[item.kind] <= limit:
            chosen.append(item)
    return chosen


def only_readable(items: Sequence[Item]) -> list[Item]:
    """The items whose picture can be used; the others are named in a warning."""
    kept = []
    for item in items:
        try:
            item.picture()
        except PictureError as cause:
            log.warning("question %s is left out: its picture cannot be used (%s)", item.id, cause)
        else:
            kept.append(item)
    return kept


class Choice(Benchmark):
    """Multiple choice, answered by a letter."""

    def read(self, item: Item, text: str, backbone: Backbone) -> tuple[str | None, float]:
        """See :meth:`Benchmark.read`."""
        letter = extract_letter(text, item.options)
        return letter, float(letter == item.label)


class YesNo(Benchmark):
    """Answered by yes or no."""

    def read(self, item: Item, text: str, backbone: Backbone) -> tuple[str | None, float]:
        """See :meth:`Benchmark.read`."""
        answer = extract_yes_no(text)
        return answer, float(answer == item.label)


def lettered(question: str, options: Mapping[str, str]) -> str:
    """A question with its options, one a line, as V*Bench writes it."""
    return f"{question}\n" + "".join(f"({letter}) {option}\n" for letter, option in options.items()) + LETTERS


FIND = "Find this: {expression}. Give its bounding box as [x1, y1, x2, y2] in {unit}."
"""How the box of an expression is asked for, unless the user says it otherwise."""


def find(image: Image.Image, expression: str, backbone: Backbone, instruction: str = "", words: str = FIND) -> Question:
    """A question for the box of an expression, in the model's own unit; ``words`` hold ``{expression}``, and may hold ``{unit}``."""
    unit = backbone.frame(image.size).unit.replace("image 1", "the image")
    text = words.replace("{expression}", expression).replace("{unit}", unit) + instruction
    return Question("", image, text.replace("{", "{{").replace("}", "}}"), "")


def text_of(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that a row has, as text.

    Raises:
        KeyError: it has none.
    """
    for name in names:
        if row.get(name) is not None:
            return str(row[name])
    raise KeyError(" or ".join(names))
