"""Several tasks in one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torchmetrics import Metric

from locus_lightning.boxes import BoxFrame
from locus_lightning.errors import ConfigError
from locus_lightning.tasks.base import Answer, Task
from locus_lightning.types import Completion, Content, RolloutGroup

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class TaskMixture(Task):
    """Each sample is asked as one of several tasks, drawn by weight; figures are logged for each task under its name.

    Args:
        tasks: The tasks, at least one. Their names differ.
        weights: How often each task is drawn, in proportion; null draws all equally often.
    """

    answer_kind = "mixed"
    columns: ClassVar[Mapping[str, str]] = {"score": "mean score"}

    def __init__(self, tasks: list[Task], weights: list[float] | None = None) -> None:
        if any(isinstance(task, TaskMixture) for task in tasks):
            raise ConfigError("TaskMixture.tasks holds another TaskMixture; list its tasks instead.")
        names = [task.name for task in tasks]
        weights = [1.0] * len(tasks) if weights is None else weights
        if not tasks or len(set(names)) < len(names):
            raise ConfigError(f"TaskMixture.tasks is {names}; give at least one task, and none twice.")
        if len(weights) != len(tasks) or min(weights) < 0 or not sum(weights) > 0:
            raise ConfigError(f"TaskMixture.weights is {weights}; give each of {', '.join(names)} a weight of 0 or more, one above 0.")
        self.tasks: dict[str, Task] = dict(zip(names, tasks, strict=True))
        self.weights = [weight / sum(weights) for weight in weights]
        self.groups = names  # type: ignore[misc]

    def of(self, sample: Any) -> Task:
        """The task of a sample."""
        return self.tasks[sample.task]

    def sample(self, sample: Any, rng: np.random.Generator) -> Any:
        """See :meth:`Task.sample`; the task is drawn first."""
        name = list(self.tasks)[int(rng.choice(len(self.tasks), p=self.weights))]
        return replace(self.tasks[name].sample(sample, rng), task=name)

    def messages(self, sample: Any, frame: BoxFrame) -> Content:
        """See :meth:`Task.messages`."""
        return self.of(sample).messages(sample, frame)

    def write_answer(self, sample: Any, frame: BoxFrame) -> str:
        """See :meth:`Task.write_answer`."""
        return self.of(sample).write_answer(sample, frame)

    def target_text(self, sample: Any, frame: BoxFrame) -> str:
        """See :meth:`Task.target_text`."""
        return self.of(sample).target_text(sample, frame)

    def read_answer(self, text: str, sample: Any, frame: BoxFrame) -> Any:
        """See :meth:`Task.read_answer`."""
        return self.of(sample).read_answer(text, sample, frame)

    def parse(self, text: str, sample: Any, frame: BoxFrame) -> Answer:
        """See :meth:`Task.parse`."""
        return self.of(sample).parse(text, sample, frame)

    def score_answer(self, answer: Any, sample: Any) -> float:
        """See :meth:`Task.score_answer`."""
        return self.of(sample).score_answer(answer, sample)

    def blind_answers(self, sample: Any) -> Mapping[str, Any]:
        """See :meth:`Task.blind_answers`."""
        return self.of(sample).blind_answers(sample)

    def metrics(self) -> Metric:
        """The mean score over all samples, and every task's own figures as ``FIGURE_TASK``."""
        return _MixtureMetrics(self)

    def rollout_figures(self, completions: Sequence[Completion], samples: Sequence[Any]) -> dict[str, float]:
        """The mean score over all samples, and ``TASK/score`` and ``TASK/parse_rate``; NaN where a batch holds no sample of a task."""
        figures = super().rollout_figures(completions, samples)
        floors = [
            task.rollout_figures([Completion("", None, False, False)] * len(own), own)["floor"] * len(own)
            for name, task in self.tasks.items()
            if (own := [sample for sample in samples if sample.task == name])
        ]
        figures["floor"] = sum(floors) / len(samples)
        for name in self.tasks:
            own = [completion for completion, sample in zip(completions, samples, strict=True) if sample.task == name]
            figures[f"{name}/score"] = fmean(c.score for c in own) if own else math.nan
            figures[f"{name}/parse_rate"] = fmean(c.answer is not None for c in own) if own else math.nan
        return figures

    def record(self, completion: Completion, sample: Any) -> dict[str, Any]:
        """See :meth:`Task.record`; names the task."""
        return {"task": sample.task, **self.of(sample).record(completion, sample)}

    def draw(self, group: RolloutGroup) -> Image:
        """See :meth:`Task.draw`."""
        return self.of(group.sample).draw(group)

    def adopt(self, remembered: Mapping[str, Any]) -> None:
        """See :meth:`Task.adopt`."""
        for task in self.tasks.values():
            task.adopt(remembered)

    def remember(self) -> dict[str, Any]:
        """See :meth:`Task.remember`."""
        return {key: value for task in self.tasks.values() for key, value in task.remember().items()}


class _MixtureMetrics(Metric):
    """Every task's metric, fed with its own samples."""

    full_state_update = False

    def __init__(self, mixture: TaskMixture) -> None:
        super().__init__()
        self._all = Task.metrics(mixture)
        self._own = torch.nn.ModuleDict({name: task.metrics() for name, task in mixture.tasks.items()})

    def update(self, completions: Sequence[Completion], samples: Sequence[Any]) -> None:
        """One completion a sample."""
        self._all.update(completions, samples)
        for name, metric in self._own.items():
            pairs = [(c, s) for c, s in zip(completions, samples, strict=True) if s.task == name]
            metric.update([c for c, _ in pairs], [s for _, s in pairs])  # type: ignore[operator]

    def compute(self) -> dict[str, Any]:
        """See :meth:`TaskMixture.metrics`."""
        figures: dict[str, Any] = dict(self._all.compute())
        floors: list[float] = []
        for name, metric in self._own.items():
            figures |= {f"{figure}_{name}": value for figure, value in metric.compute().items()}  # type: ignore[operator]
            floors.append(float(figures[f"floor_{name}"]) * float(figures[f"samples_{name}"]))
            figures[f"score_{name}"] = figures.get(f"score_{name}", figures.get(f"iou_{name}", 0.0))
        return {**figures, "floor": sum(floors) / max(1.0, float(figures["samples"]))}

    def reset(self) -> None:
        """Back to the start."""
        super().reset()
        self._all.reset()
        for metric in self._own.values():
            metric.reset()  # type: ignore[operator]
