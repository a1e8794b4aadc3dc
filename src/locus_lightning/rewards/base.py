"""The reward contract."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from locus_lightning.errors import ConfigError, PluginError
from locus_lightning.types import Completion

if TYPE_CHECKING:
    import torch


Scores = Sequence[float] | Exception
"""The scores of a group, or why there are none."""


@dataclass(frozen=True)
class RewardBatch:
    """A rollout batch as a reward may see it whole.

    Args:
        groups: the completions of every sample, with the sample.
        step: optimiser steps taken.
    """

    groups: Sequence[tuple[Sequence[Completion], Any]]
    step: int


class Reward(ABC):
    """Scores one completion of one sample. It is pure and deterministic; malformed text scores low, it never raises.

    Args:
        weight: factor of this reward in the sum that is optimised. A weight of 0 only logs; a negative weight is a penalty.
        name: the curve's name; null takes the class name in lower case, without ``Reward``. Two rewards of one class need different names.

    Every reward is logged under its own :attr:`name`, before weighting.
    """

    fits: ClassVar[frozenset[str] | None] = None
    """Kinds of answers that this reward can score (``Task.answer_kind``); None: all."""

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        if not math.isfinite(weight):
            raise ConfigError(f"{type(self).__name__}.weight is {weight}; a reward's weight is a finite number.")
        self.weight, self._name = weight, name

    @property
    def name(self) -> str:
        """The curve's name."""
        return getattr(self, "_name", None) or type(self).__name__.removesuffix("Reward").lower()

    @abstractmethod
    def score(self, completion: Completion, sample: Any) -> float:
        """The score of one completion, usually in [0, 1]."""

    def score_group(self, completions: Sequence[Completion], sample: Any) -> list[float]:
        """Scores of a whole group; override it for a reward that compares completions."""
        return [self.score(completion, sample) for completion in completions]

    def score_batch(self, batch: RewardBatch) -> list[Scores]:
        """Scores of every group of a rollout batch; override it for a reward that runs a model of its own, or depends on the step. An exception in
        place of a group's scores leaves that group out."""
        results: list[Scores] = []
        for completions, sample in batch.groups:
            try:
                results.append(self.score_group(completions, sample))
            except Exception as cause:
                results.append(cause)
        return results

    def setup(self, device: torch.device) -> None:  # noqa: B027 - most rewards need nothing
        """Called once before training, on every process, with the device of the model: load what scoring needs."""

    def teardown(self) -> None:  # noqa: B027
        """Called when training has ended or failed: let go of it."""


def checked_scores(reward: Reward, completions: Sequence[Completion], sample: Any) -> tuple[float, ...]:
    """A reward's scores of a group as floats.

    Raises:
        PluginError: the reward raised, gave another number of scores, or one that is no finite real number; names reward and sample.
    """
    try:
        scores: Scores = list(reward.score_group(completions, sample))
    except Exception as cause:
        scores = cause
    return _checked(reward, scores, completions, sample)


def checked_batch(reward: Reward, batch: RewardBatch) -> list[tuple[float, ...] | PluginError]:
    """A reward's scores of a rollout batch, or for a group why it has none (see :func:`checked_scores`).

    Raises:
        PluginError: the reward raised, or gave another number of groups.
    """
    what = f"the reward {reward.name!r} ({type(reward).__module__}.{type(reward).__qualname__})"
    try:
        results = list(reward.score_batch(batch))
    except Exception as cause:
        raise PluginError(f"{what}, a whole rollout batch: it raised {type(cause).__name__}: {cause}") from cause
    if len(results) != len(batch.groups):
        raise PluginError(f"{what}: score_batch gave {len(results)} groups of scores for {len(batch.groups)} groups.")
    checked: list[tuple[float, ...] | PluginError] = []
    for scores, (completions, sample) in zip(results, batch.groups, strict=True):
        try:
            checked.append(_checked(reward, scores, completions, sample))
        except PluginError as fault:
            checked.append(fault)
    return checked


def _checked(reward: Reward, scores: Scores, completions: Sequence[Completion], sample: Any) -> tuple[float, ...]:
    what = f"the reward {reward.name!r} ({type(reward).__module__}.{type(reward).__qualname__}), sample {sample.id}"
    if isinstance(scores, Exception):
        raise PluginError(f"{what}: it raised {type(scores).__name__}: {scores}") from scores
    if len(scores) != len(completions):
        raise PluginError(f"{what}: it gave {len(scores)} scores for {len(completions)} completions.")
    return tuple(_finite(value, f"{what}, completion {i}") for i, value in enumerate(scores))


def _finite(value: Any, what: str) -> float:
    """A score of any real number type (Python, numpy, a tensor of one element) as a float."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError("a string")
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise PluginError(f"{what}: the score is {value!r}, which is no number.") from cause
    if not math.isfinite(number):
        raise PluginError(f"{what}: the score is {number}; it must be finite.")
    return number
