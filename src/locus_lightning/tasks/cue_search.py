"""Local visual cue search (LOCUS, paper section 2): where in the image does this crop come from?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from locus_lightning.boxes import BoxFrame, box_area, clip_box, constant_boxes, iou
from locus_lightning.errors import ConfigError
from locus_lightning.tasks.base import Answer, Task
from locus_lightning.tasks.metrics import Sums
from locus_lightning.tasks.parsing import parse_boxes
from locus_lightning.types import Box, Completion, Content, CueSample, RolloutGroup, SizeBin

if TYPE_CHECKING:
    from PIL.Image import Image

BINS: tuple[SizeBin, ...] = get_args(SizeBin)
THRESHOLDS = (0.5, 0.75)
Layout = Literal["labelled", "images_first"]


@dataclass(frozen=True)
class CuePrompt:
    """The words of cue search (our wording).

    Args:
        before_image: The words before the full image.
        before_cue: The words between the full image and the crop.
        instruction: The question. ``{unit}`` becomes the frame's own words for its coordinates, such as "pixels".
        text_cue: The question where the cue is in words, which become ``{cue}``; it takes the place of crop and instruction.
        structure: The sentence that says how the answer is to be written.
        rationale: The text that supervised training puts inside the think block.
    """

    before_image: str = "Image 1: "
    before_cue: str = "\nImage 2: "
    instruction: str = (
        "\nImage 2 was cut out of image 1. Find where it came from and give its bounding box in image 1 as [x1, y1, x2, y2] in {unit}."
    )
    text_cue: str = "\nFind this in image 1: {cue}. Give its bounding box in image 1 as [x1, y1, x2, y2] in {unit}."
    structure: str = " First think inside <think></think>, then give only the box inside <answer></answer>."
    rationale: str = "I look for the part of image 1 that matches image 2."

    def __post_init__(self) -> None:
        try:
            self.instruction.format(unit="pixels")
            self.text_cue.format(unit="pixels", cue="red circle")
        except (KeyError, IndexError, ValueError) as cause:
            raise ConfigError(
                f"task.prompt.instruction has a placeholder other than {{unit}}, or text_cue one other than {{unit}} and {{cue}} ({cause}); "
                "double the braces that are meant literally."
            ) from None


class CueSearch(Task):
    """Find a crop, or what words describe, in the image; the answer is its box.

    Args:
        prompt: the words; null takes those that the checkpoint's folder remembers, else our own.
        layout: ``labelled`` writes words before each image; ``images_first`` shows both images first and then one text, as the paper does
            (section 2); null takes what the checkpoint's folder remembers, else ``labelled``.
    """

    answer_kind = "box"
    headline = "iou"
    columns: ClassVar[Mapping[str, str]] = {"iou": "mean IoU", "acc0.5": "ACC@0.5", "acc0.75": "ACC@0.75"}
    groups = BINS

    def __init__(self, prompt: CuePrompt | None = None, layout: Layout | None = None) -> None:
        self._stated_prompt, self._stated_layout = prompt, layout
        self.layout: Layout = layout or "labelled"
        self.prompt = prompt or CuePrompt()

    @property
    def rationale(self) -> str:  # type: ignore[override]
        """See :attr:`Task.rationale`."""
        return self.prompt.rationale

    def messages(self, sample: CueSample, frame: BoxFrame) -> Content:
        """Full image, cue, instruction, structure: the order of the paper, section 2."""
        words = self.prompt
        if sample.cue.text:
            instruction = words.text_cue.format(unit=frame.unit, cue=sample.cue.text) + words.structure
            return (sample.image, instruction) if self.layout == "images_first" else (words.before_image, sample.image, instruction)
        instruction = words.instruction.format(unit=frame.unit) + words.structure
        if self.layout == "images_first":
            return (sample.image, sample.cue.image, instruction)
        return (words.before_image, sample.image, words.before_cue, sample.cue.image, instruction)

    def write_answer(self, sample: CueSample, frame: BoxFrame) -> str:
        """The cue's window as the frame writes it."""
        return frame.to_text(sample.box)

    def read_answer(self, text: str, sample: CueSample, frame: BoxFrame) -> Box | None:
        """The one box of an answer block, original pixels."""
        boxes, _ = parse_boxes(f"<answer>{text}</answer>", frame, 1)
        return boxes[0] if boxes else None

    def parse(self, text: str, sample: CueSample, frame: BoxFrame) -> Answer:
        """See :meth:`Task.parse`; an inverted box is well formed, and is no answer (paper, section 2: the format is rewarded apart)."""
        boxes, well_formed = parse_boxes(text, frame, 1)
        return Answer(boxes[0] if boxes else None, well_formed)

    def score_answer(self, answer: Box, sample: CueSample) -> float:
        """IoU in original pixels of the box, clipped to the image (our decision 9)."""
        return iou(clip_box(answer, sample.image.size), sample.box)

    def blind_answers(self, sample: CueSample) -> dict[str, Box]:
        """The whole image and boxes in its middle: the constant-box baselines."""
        return constant_boxes(sample.image.size)

    def metrics(self) -> CueMetrics:
        """IoU and ACC over all cues and by size bin."""
        return CueMetrics()

    def rollout_figures(self, completions: Sequence[Completion], samples: Sequence[CueSample]) -> dict[str, float]:
        """IoU and shape of the answered boxes, see :meth:`Task.rollout_figures`."""
        ious = torch.tensor([completion.score for completion in completions], dtype=torch.float32)
        boxes = [(c.answer, s) for c, s in zip(completions, samples, strict=True) if c.answer is not None]
        ratios = [box_area(box) / box_area(s.box) for box, s in boxes]
        floors = [[iou(box, s.box) for box in constant_boxes(s.image.size).values()] for s in {id(s): s for s in samples}.values()]
        figures = {
            "iou": float(ious.mean()),
            "acc0.5": float((ious >= 0.5).float().mean()),
            "floor": max(statistics.fmean(column) for column in zip(*floors, strict=True)),
            "parse_rate": len(boxes) / len(completions),
            "area_ratio": statistics.median(ratios) if ratios else 0.0,
            "beyond_image": statistics.fmean(float(reaches_beyond(box, s.image.size)) for box, s in boxes) if boxes else 0.0,
        }
        return figures | {f"iou_q{q}": float(torch.quantile(ious, q / 100)) for q in (10, 50, 90)}

    def record(self, completion: Completion, sample: CueSample) -> dict[str, Any]:
        """See :meth:`Task.record`; box and truth in original pixels."""
        return {
            "id": sample.id,
            "text": completion.text,
            "box": completion.box,
            "true_box": sample.box,
            "size_bin": sample.cue.window.size_bin,
            "iou": completion.score,
            "well_formed": completion.well_formed,
            "truncated": completion.truncated,
        }

    def draw(self, group: RolloutGroup) -> Image:
        """The image with its true box and the answers, the cue beside it."""
        from locus_lightning.tasks.pictures import draw_boxes

        sample: CueSample = group.sample
        answers = [[] if c.box is None else [c.box] for c in group.completions]
        return draw_boxes(sample.image, [sample.box], [sample.cue.image], answers, group.rewards, sample.id)

    def adopt(self, remembered: Mapping[str, Any]) -> None:
        """Take the words and the layout that a saved model was trained with, unless the user states some."""
        layout, words = remembered.get("layout"), remembered.get("prompt")
        if self._stated_layout is None and layout in get_args(Layout):
            self.layout = layout  # type: ignore[assignment]
        if self._stated_prompt is not None or not words:
            return
        unknown = sorted(set(words) - {field.name for field in fields(CuePrompt)}) if isinstance(words, Mapping) else ["a list"]
        if unknown or not all(isinstance(text, str) for text in words.values()):
            raise ConfigError(
                f"the checkpoint's folder remembers a prompt that cue search does not know ({', '.join(unknown) or 'not all are strings'}); "
                "state model.task.prompt, or correct locus.json."
            )
        self.prompt = replace(CuePrompt(), **words)

    def remember(self) -> dict[str, Any]:
        """The words and the layout."""
        return {"prompt": dict(vars(self.prompt)), "layout": self.layout}


def reaches_beyond(box: Box, size: tuple[int, int]) -> bool:
    """Whether a box leaves its image by more than half a pixel."""
    return any(abs(a - b) > 0.5 for a, b in zip(box, clip_box(box, size), strict=True))


class CueMetrics(Sums):
    """Mean IoU, ACC@0.5 and ACC@0.75 over all cues and by size bin, parse rate, area ratio, and the floor (paper, table 10).

    The floor is the mean IoU of the best constant box (whole image, centre boxes) over the same cues: what a model reaches that never
    looks.
    """

    by_bin: Tensor
    floors: Tensor
    shape: Tensor

    def __init__(self) -> None:
        super().__init__()
        columns = 2 + len(THRESHOLDS)  # count, IoU, hits
        self.add_sums(by_bin=(len(BINS), columns), floors=(len(constant_boxes((1, 1))),), shape=(4,))

    def update(self, completions: Sequence[Completion], samples: Sequence[CueSample]) -> None:
        """One completion a sample."""
        by_bin, floors, shape = (torch.zeros_like(state) for state in (self.by_bin, self.floors, self.shape))
        for completion, sample in zip(completions, samples, strict=True):
            box = completion.answer
            row = [1.0, completion.score, *(float(completion.score >= t) for t in THRESHOLDS)]
            by_bin[BINS.index(sample.cue.window.size_bin)] += by_bin.new_tensor(row)
            floors += floors.new_tensor([iou(blind, sample.box) for blind in constant_boxes(sample.image.size).values()])
            ratio = 0.0 if box is None else box_area(box) / box_area(sample.box)
            beyond = box is not None and reaches_beyond(box, sample.image.size)
            shape += shape.new_tensor([float(box is not None), float(completion.well_formed), ratio, float(beyond)])
        # Not in place: a state that was reset in inference mode cannot be written to outside it.
        self.by_bin, self.floors, self.shape = self.by_bin + by_bin, self.floors + floors, self.shape + shape

    def compute(self) -> dict[str, Any]:
        """Named figures; a size bin that holds no cue is left out."""
        total = self.by_bin.sum(dim=0)
        figures: dict[str, Any] = dict(_row(total))
        for name, row in zip(BINS, self.by_bin, strict=True):
            if row[0] > 0:
                figures |= {f"{key}_{name}": value for key, value in _row(row).items()} | {f"samples_{name}": row[0]}
        count, parsed = total[0].clamp_min(1), self.shape[0].clamp_min(1)
        return figures | {
            "samples": total[0],
            "floor": self.floors.max() / count,
            "parse_rate": self.shape[0] / count,
            "format_rate": self.shape[1] / count,
            "area_ratio": self.shape[2] / parsed,
            "beyond_image": self.shape[3] / parsed,
        }


def _row(row: Tensor) -> dict[str, Tensor]:
    count = row[0].clamp_min(1)
    return {"iou": row[1] / count} | {f"acc{t:g}": row[2 + i] / count for i, t in enumerate(THRESHOLDS)}
