"""The format reward."""

from __future__ import annotations

from typing import Any

from locus_lightning.rewards.base import Reward
from locus_lightning.types import Completion


class FormatReward(Reward):
    """1 when the whole response is a think block and an answer block that holds an answer of the right form, else 0.

    Paper section 2: r_format, weight alpha = 0.1.

    Args:
        weight: The factor of this reward in the sum that is optimised.
        name: The curve's name; null takes it from the class.
    """

    def __init__(self, weight: float = 0.1, name: str | None = None) -> None:
        super().__init__(weight, name)

    def score(self, completion: Completion, sample: Any) -> float:
        """0 or 1."""
        return float(completion.well_formed)
