"""An example reward plugin: generalised IoU, which still has a slope where boxes do not touch."""

from locus_lightning.boxes import clip_box, giou
from locus_lightning.rewards.base import Reward
from locus_lightning.types import Completion, CueSample


class GIoUReward(Reward):
    """Generalised IoU (Rezatofighi et al. 2019), moved from [-1, 1] to [0, 1]; 0 without a valid box.

    Where IoU is 0 for every answer of a group, GIoU still tells a near miss from a far one.
    """

    fits = frozenset({"box"})

    def score(self, completion: Completion, sample: CueSample) -> float:
        """A score in [0, 1]."""
        if completion.box is None:
            return 0.0
        return (giou(clip_box(completion.box, sample.image.size), sample.box) + 1) / 2
