"""Several crops at once: one box a crop."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from locus_lightning.boxes import BoxFrame, clip_box, constant_boxes, crop_window, iou
from locus_lightning.errors import ConfigError
from locus_lightning.tasks.base import Answer, Task
from locus_lightning.tasks.parsing import parse_boxes
from locus_lightning.types import Box, Content, CueSample, RolloutGroup, Sample

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


@dataclass(frozen=True)
class MultiCueSample(Sample):
    """One image, several crops of it, and a box for each (original pixels, in the order of the crops)."""

    cues: tuple[Image, ...]
    boxes: tuple[Box, ...]


class MultiCue(Task):
    """Find several crops of one image; the answer is a box for each of them.

    Crops beside the sample's own come from the other windows that the data source found in the same image. An image with too few windows
    shows fewer crops.

    Args:
        cues: The largest number of crops a sample.
        matching: ``order`` compares the first box with the first crop and so on; ``best`` takes the assignment of boxes to crops with the
            largest mean IoU.
    """

    answer_kind = "boxes"
    headline = "iou"
    columns: ClassVar[Mapping[str, str]] = {"iou": "mean IoU", "exact": "all found"}
    rationale = "I look for each crop in image 1."

    def __init__(self, cues: int = 2, matching: Literal["order", "best"] = "order") -> None:
        if not 1 <= cues <= 6:
            raise ConfigError(f"MultiCue.cues is {cues}; it is from 1 to 6.")
        self.cues, self.matching = cues, matching

    def sample(self, sample: CueSample, rng: np.random.Generator) -> MultiCueSample:
        """The sample's cue with further windows of its image, drawn at random."""
        others = [sample.others[int(i)] for i in rng.permutation(len(sample.others))[: self.cues - 1]]
        boxes: list[Box] = [sample.box]
        for window in others:
            x1, y1, x2, y2 = window.box
            boxes.append((float(x1), float(y1), float(x2), float(y2)))
        crops = (sample.cue.image, *(crop_window(sample.image, window) for window in others))
        return MultiCueSample(sample.id, sample.image, crops, tuple(boxes), quarantined=sample.quarantined)

    def messages(self, sample: MultiCueSample, frame: BoxFrame) -> Content:
        """The image, then the numbered crops, then the instruction."""
        crops = [part for i, crop in enumerate(sample.cues, 2) for part in (f"\nImage {i}: ", crop)]
        last = len(sample.cues) + 1
        instruction = f"\nImages 2 to {last} were cut out of image 1. Find" if last > 2 else "\nImage 2 was cut out of image 1. Find"
        form = ", ".join(["[x1, y1, x2, y2]"] * len(sample.cues))
        words = (
            f"{instruction} where each came from and give their bounding boxes in image 1, in the order of the crops, as {form} in {frame.unit}. "
            "First think inside <think></think>, then give only the boxes inside <answer></answer>."
        )
        return ("Image 1: ", sample.image, *crops, words)

    def write_answer(self, sample: MultiCueSample, frame: BoxFrame) -> str:
        """All boxes, in order."""
        return ", ".join(frame.to_text(box) for box in sample.boxes)

    def read_answer(self, text: str, sample: MultiCueSample, frame: BoxFrame) -> tuple[Box, ...] | None:
        """As many boxes as there are crops, or None."""
        return parse_boxes(f"<answer>{text}</answer>", frame, len(sample.boxes))[0]

    def parse(self, text: str, sample: MultiCueSample, frame: BoxFrame) -> Answer:
        """See :meth:`Task.parse`; inverted boxes are well formed, and no answer."""
        return Answer(*parse_boxes(text, frame, len(sample.boxes)))

    def score_answer(self, answer: tuple[Box, ...], sample: MultiCueSample) -> float:
        """Mean IoU of matched boxes, each clipped to the image."""
        boxes = [clip_box(box, sample.image.size) for box in answer]
        orders = itertools.permutations(boxes) if self.matching == "best" else [boxes]
        return max(statistics.fmean(iou(a, b) for a, b in zip(order, sample.boxes, strict=True)) for order in orders)

    def blind_answers(self, sample: MultiCueSample) -> dict[str, tuple[Box, ...]]:
        """The same constant box for every crop."""
        return {name: (box,) * len(sample.boxes) for name, box in constant_boxes(sample.image.size).items()}

    def metrics(self) -> Any:
        """See :meth:`Task.metrics`; the mean score is a mean IoU."""
        from locus_lightning.tasks.metrics import TaskMetrics

        return TaskMetrics(self, score="iou")

    def draw(self, group: RolloutGroup) -> Image:
        """The image with the true boxes and the answers, the crops beside it."""
        from locus_lightning.tasks.pictures import draw_boxes

        sample: MultiCueSample = group.sample
        return draw_boxes(sample.image, sample.boxes, sample.cues, [c.answer or () for c in group.completions], group.rewards, sample.id)
