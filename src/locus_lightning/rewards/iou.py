"""The localisation reward."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from locus_lightning.boxes import clip_box, iou
from locus_lightning.rewards.base import Reward
from locus_lightning.types import Completion


class IoUReward(Reward):
    """IoU of the answered box with the right one in original pixels; 0 without a valid answer. Of several boxes the mean, in order.

    A box that reaches beyond the image is clipped first (our decision 9). Paper section 2: r_loc, weight 1 - alpha = 0.9.

    Args:
        weight: The factor of this reward in the sum that is optimised.
        name: The curve's name; null takes it from the class.
    """

    fits = frozenset({"box", "boxes"})

    def __init__(self, weight: float = 0.9, name: str | None = None) -> None:
        super().__init__(weight, name)

    def score(self, completion: Completion, sample: Any) -> float:
        """IoU in [0, 1]."""
        if completion.answer is None:
            return 0.0
        if completion.box is not None:
            return iou(clip_box(completion.box, sample.image.size), sample.box)
        return fmean(iou(clip_box(a, sample.image.size), b) for a, b in zip(completion.answer, sample.boxes, strict=True))
