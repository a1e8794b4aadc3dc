"""The reward contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from locus_lightning.errors import ConfigError
from locus_lightning.types import Completion, CueSample


class Reward(ABC):
    """Scores one completion of one sample. Pure and deterministic; malformed text scores low, it never raises.

    Args:
        weight: factor of this reward in the sum that is optimised. A weight of 0 only logs.

    Every reward is logged under its own :attr:`name`, before weighting.
    """

    def __init__(self, weight: float = 1.0) -> None:
        if not weight >= 0:
            raise ConfigError(f"{type(self).__name__}.weight is {weight}; a reward's weight is 0 or more.")
        self.weight = weight

    @property
    def name(self) -> str:
        """The curve's name: the class name in lower case, without ``Reward``."""
        return type(self).__name__.removesuffix("Reward").lower()

    @abstractmethod
    def score(self, completion: Completion, sample: CueSample) -> float:
        """The score of one completion, usually in [0, 1]."""

    def score_group(self, completions: Sequence[Completion], sample: CueSample) -> list[float]:
        """Scores of a whole group; override it for a batched or remote reward."""
        return [self.score(completion, sample) for completion in completions]
