"""The format reward."""

from __future__ import annotations

from locus_lightning.rewards.base import Reward
from locus_lightning.types import Completion, CueSample


class FormatReward(Reward):
    """1 when the whole response is a think block and an answer block with one box, else 0.

    Paper section 2: r_format, weight alpha = 0.1.
    """

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def score(self, completion: Completion, sample: CueSample) -> float:
        """0 or 1."""
        return float(completion.well_formed)
