"""The task's own score as a reward."""

from __future__ import annotations

from typing import Any

from locus_lightning.rewards.base import Reward
from locus_lightning.types import Completion


class AnswerReward(Reward):
    """The task's own score of the answer, from 0 to 1; 0 where no answer could be parsed. It fits every task.

    Args:
        weight: The factor of this reward in the sum that is optimised.
        name: The curve's name; null takes it from the class.
    """

    def __init__(self, weight: float = 0.9, name: str | None = None) -> None:
        super().__init__(weight, name)

    def score(self, completion: Completion, sample: Any) -> float:
        """The score that the task gave."""
        return completion.score
