"""What answers depend on: the context around the targets (paper, section 1: visual context rot), and whether the target is found."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from rich.progress import track

from locus_lightning.backbones.base import Backbone
from locus_lightning.boxes import clip_box, iou, keep_only
from locus_lightning.rollout.base import RolloutEngine, ask
from locus_lightning.tasks.parsing import boxes_in, extract_answer
from locus_lightning.types import Box, Question


def say(backbone: Backbone, engine: RolloutEngine, questions: Sequence[Question], about: str, batch: int = 8) -> list[str]:
    """Greedy answers of at most 64 tokens."""
    texts = []
    for i in track(range(0, len(questions), batch), description=about):
        texts += [answer.text for answer in ask(engine, backbone, questions[i : i + batch], 64)]
    return texts


@dataclass(frozen=True)
class Asked:
    """A question, the boxes of what it is about, how an answer is marked, and for each box a question for it by name (may be empty)."""

    question: Question
    boxes: tuple[Box, ...]
    right: Callable[[str], bool]
    targets: tuple[Question, ...] = ()


def context(backbone: Backbone, engine: RolloutEngine, items: Sequence[Asked]) -> list[tuple[bool, bool]]:
    """For every question, whether the answer is right with the full image, and with all but the targets blacked out."""
    full = [one.question for one in items]
    alone = [replace(one.question, image=keep_only(one.question.image, one.boxes)) for one in items]
    texts = [say(backbone, engine, some, what) for some, what in ((full, "full image"), (alone, "targets alone"))]
    return [(one.right(a), one.right(b)) for one, a, b in zip(items, *texts, strict=True)]


@dataclass(frozen=True)
class Grounded:
    """IoU of the queried objects (mean over the question's targets), and whether the question was answered rightly."""

    iou: float
    right: bool


def grounding(backbone: Backbone, engine: RolloutEngine, items: Sequence[Asked]) -> list[Grounded]:
    """Every target is asked for by its name; every question is asked as it is."""
    texts = say(backbone, engine, [one.question for one in items], "questions")
    named = iter(say(backbone, engine, [target for one in items for target in one.targets], "targets"))
    rows = []
    for one, text in zip(items, texts, strict=True):
        boxes_of_targets = [boxes_in(extract_answer(next(named))) for _ in one.targets]
        frame, size = backbone.frame(one.question.image.size), one.question.image.size
        ious = [
            iou(clip_box(frame.to_original(boxes[0]), size), box) if boxes else 0.0
            for boxes, box in zip(boxes_of_targets, one.boxes, strict=False)
        ]
        rows.append(Grounded(mean(ious) if ious else 0.0, one.right(text)))
    return rows


EDGES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Bins of IoU: half-open, the last one closed."""


def by_iou(rows: Sequence[Grounded]) -> list[dict[str, Any]]:
    """Accuracy of the questions in every bin of IoU; None where a bin is empty."""
    bins = []
    for low, high in itertools.pairwise(EDGES):
        some = [row.right for row in rows if low <= row.iou < high or (high == 1.0 and row.iou == 1.0)]
        bins.append({"from": low, "to": high, "questions": len(some), "accuracy": mean(some) if some else None})
    return bins
