"""How well a task is answered: figures over a data set and over a rollout batch, beside the floor of answers that need no looking."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from locus_lightning.types import Completion

if TYPE_CHECKING:
    from locus_lightning.tasks.base import Task


class Sums(Metric):
    """A metric whose states are float64 sums, kept as such: Lightning's precision plugins cast float tensors of a module, and in bfloat16
    a sum of ones stops at 256."""

    full_state_update = False

    def add_sums(self, **shapes: tuple[int, ...]) -> None:
        """Declare states of these shapes, zero at first, added up over processes."""
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: Any) -> Sums:
        """The states stay float64."""
        return self

    def _apply(self, fn: Any, exclude_state: Sequence[str] = ()) -> Sums:
        """Move to a device, but never change the type of the states."""

        def moved(tensor: Tensor) -> Tensor:
            out: Tensor = fn(tensor)
            return tensor.to(out.device) if out.dtype != tensor.dtype else out

        super()._apply(moved, exclude_state)
        return self


MOST_BLIND = 64
"""Blind answers of a task that count for its floor; further ones are not looked at."""


class TaskMetrics(Sums):
    """Mean score, share of fully right answers, parse rate, format rate, and the floor, over all samples.

    The floor is the mean score of the best blind answer over the same samples: what a model reaches that never looks.

    Args:
        task: scores the answers.
        score: name of the mean score.
    """

    sums: Tensor
    blind: Tensor

    def __init__(self, task: Task, score: str = "score") -> None:
        super().__init__()
        self._task, self._score = task, score
        self.add_sums(sums=(5,), blind=(MOST_BLIND,))

    def update(self, completions: Sequence[Completion], samples: Sequence[Any]) -> None:
        """One completion a sample."""
        sums, blind = torch.zeros_like(self.sums), torch.zeros_like(self.blind)
        for completion, sample in zip(completions, samples, strict=True):
            parsed = completion.answer is not None
            sums += sums.new_tensor([1.0, completion.score, completion.score >= 1.0 - 1e-9, parsed, completion.well_formed])
            for i, answer in enumerate(islice(self._task.blind_answers(sample).values(), MOST_BLIND)):
                blind[i] += self._task.score_answer(answer, sample)
        # Not in place: a state that was reset in inference mode cannot be written to outside it.
        self.sums, self.blind = self.sums + sums, self.blind + blind

    def compute(self) -> dict[str, Tensor]:
        """Named figures."""
        count = self.sums[0].clamp_min(1)
        score, exact, parsed, formed = (self.sums[1:] / count).unbind()
        return {
            self._score: score, "exact": exact, "parse_rate": parsed, "format_rate": formed, "samples": self.sums[0],
            "floor": self.blind.max() / count,
        }  # fmt: skip


def score_figures(task: Task, completions: Sequence[Completion], samples: Sequence[Any]) -> dict[str, float]:
    """Figures of a rollout batch from the task's own scores: mean, quantiles, floor, and share of answers that could be parsed."""
    scores = torch.tensor([completion.score for completion in completions], dtype=torch.float32)
    blind: dict[str, list[float]] = {}
    for sample in samples:
        for name, answer in task.blind_answers(sample).items():
            blind.setdefault(name, []).append(task.score_answer(answer, sample))
    figures = {
        "score": float(scores.mean()),
        "exact": float((scores >= 1.0 - 1e-6).float().mean()),
        "parse_rate": statistics.fmean(float(completion.answer is not None) for completion in completions),
        "floor": max((statistics.fmean(row) for row in blind.values()), default=0.0),
    }
    return figures | {f"score_q{q}": float(torch.quantile(scores, q / 100)) for q in (10, 50, 90)}
