"""How well cues are found: the figures of the paper's table 10, by size bin, beside the floor of the best trivial box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from locus_lightning.boxes import box_area, clip_box, iou, trivial_boxes
from locus_lightning.types import Box, Completion, CueSample, SizeBin

BINS: tuple[SizeBin, ...] = get_args(SizeBin)
THRESHOLDS = (0.5, 0.75)


def completion_iou(completion: Completion, sample: CueSample) -> float:
    """IoU in original pixels of the answered box, clipped to the image; 0 without a valid box."""
    return 0.0 if completion.box is None else iou(clip_box(completion.box, sample.image.size), sample.box)


def reaches_beyond(box: Box, size: tuple[int, int]) -> bool:
    """Whether a box leaves its image by more than half a pixel."""
    return any(abs(a - b) > 0.5 for a, b in zip(box, clip_box(box, size), strict=True))


class CueMetrics(Metric):
    """Mean IoU, ACC@0.5 and ACC@0.75 over all cues and by size bin, parse rate, area ratio, and the floor.

    The floor is the mean IoU of the best single trivial box (whole image, centre boxes) over the same cues: what a model
    reaches that never looks.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        columns = 2 + len(THRESHOLDS)  # count, IoU, hits
        self.by_bin: Tensor
        self.floors: Tensor
        self.shape: Tensor
        self.add_state("by_bin", torch.zeros(len(BINS), columns, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("floors", torch.zeros(len(trivial_boxes((1, 1))), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("shape", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, completions: Sequence[Completion], samples: Sequence[CueSample]) -> None:
        """One completion a sample."""
        by_bin, floors, shape = (torch.zeros_like(state) for state in (self.by_bin, self.floors, self.shape))
        for completion, sample in zip(completions, samples, strict=True):
            value = completion_iou(completion, sample)
            row = [1.0, value, *(float(value >= t) for t in THRESHOLDS)]
            by_bin[BINS.index(sample.cue.window.size_bin)] += by_bin.new_tensor(row)
            floors += floors.new_tensor([iou(box, sample.box) for box in trivial_boxes(sample.image.size).values()])
            beyond, ratio = False, 0.0
            if completion.box is not None:
                ratio = box_area(completion.box) / box_area(sample.box)
                beyond = reaches_beyond(completion.box, sample.image.size)
            parsed = completion.box is not None
            shape += shape.new_tensor([float(parsed), float(completion.well_formed), ratio, float(beyond)])
        # not in place: a state that was reset in inference mode cannot be written to outside it
        self.by_bin, self.floors, self.shape = self.by_bin + by_bin, self.floors + floors, self.shape + shape

    def compute(self) -> dict[str, Any]:
        """Named figures; a size bin that holds no cue is left out."""
        total = self.by_bin.sum(dim=0)
        figures: dict[str, Any] = dict(_row(total))
        for name, row in zip(BINS, self.by_bin, strict=True):
            if row[0] > 0:
                figures |= {f"{key}_{name}": value for key, value in _row(row).items()} | {f"cues_{name}": row[0]}
        count, parsed = total[0].clamp_min(1), self.shape[0].clamp_min(1)
        return figures | {
            "cues": total[0],
            "floor": self.floors.max() / count,
            "parse_rate": self.shape[0] / count,
            "format_rate": self.shape[1] / count,
            "area_ratio": self.shape[2] / parsed,
            "beyond_image": self.shape[3] / parsed,
        }


def _row(row: Tensor) -> dict[str, Tensor]:
    count = row[0].clamp_min(1)
    return {"iou": row[1] / count} | {f"acc{t:g}": row[2 + i] / count for i, t in enumerate(THRESHOLDS)}
