"""The reward contract."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from locus_lightning.errors import ConfigError, PluginError
from locus_lightning.types import Completion


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
        """Scores of a whole group; override it for a batched or remote reward."""
        return [self.score(completion, sample) for completion in completions]


def checked_scores(reward: Reward, completions: Sequence[Completion], sample: Any) -> tuple[float, ...]:
    """A reward's scores of a group as floats.

    Raises:
        PluginError: the reward raised, gave another number of scores, or one that is no finite real number; names reward and sample.
    """
    what = f"the reward {reward.name!r} ({type(reward).__module__}.{type(reward).__qualname__}), sample {sample.id}"
    try:
        scores = list(reward.score_group(completions, sample))
    except Exception as cause:
        raise PluginError(f"{what}: it raised {type(cause).__name__}: {cause}") from cause
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
