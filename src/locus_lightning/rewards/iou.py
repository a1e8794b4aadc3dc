"""The localisation reward."""

from __future__ import annotations

from locus_lightning.boxes import clip_box, iou
from locus_lightning.rewards.base import Reward
from locus_lightning.types import Completion, CueSample


class IoUReward(Reward):
    """IoU of the answered box with the cue's window in original pixels; 0 without a valid box.

    A box that reaches beyond the image is clipped first (our decision 9). Paper section 2: r_loc, weight 1 - alpha = 0.9.
    """

    def __init__(self, weight: float = 0.9) -> None:
        super().__init__(weight)

    def score(self, completion: Completion, sample: CueSample) -> float:
        """IoU in [0, 1]."""
        if completion.box is None:
            return 0.0
        return iou(clip_box(completion.box, sample.image.size), sample.box)
