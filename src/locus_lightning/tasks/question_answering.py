"""Plain questions about one image: supervised examples, and what benchmarks ask."""

from __future__ import annotations

from typing import Any

from locus_lightning.boxes import BoxFrame, clip_box, iou
from locus_lightning.tasks.base import Answer, Task
from locus_lightning.tasks.parsing import boxes_in, extract_answer
from locus_lightning.types import Content, Question


class QuestionAnswering(Task):
    """A question stands behind its image; the answer is the whole text, with no think block."""

    answer_kind = "words"

    def messages(self, sample: Question, frame: BoxFrame) -> Content:
        """Image, then question, its boxes written in the frame."""
        return (sample.image, "\n" + _with_boxes(sample.text, sample, frame))

    def write_answer(self, sample: Question, frame: BoxFrame) -> str:
        """The right answer, its boxes written in the frame."""
        return _with_boxes(sample.answer, sample, frame)

    def target_text(self, sample: Question, frame: BoxFrame) -> str:
        """The right answer and nothing else."""
        return self.write_answer(sample, frame)

    def read_answer(self, text: str, sample: Question, frame: BoxFrame) -> Any:
        """Text where words are asked for, else every valid box in it, original pixels."""
        if not _asks_for_boxes(sample):
            return text.strip()
        return tuple(clip_box(frame.to_original(box), sample.image.size) for box in boxes_in(text))

    def parse(self, text: str, sample: Question, frame: BoxFrame) -> Answer:
        """The whole text counts, without a think block where the model writes one."""
        text = extract_answer(text) if "</think>" in text else text.removeprefix("<think>")
        return Answer(self.read_answer(text, sample, frame), True)

    def score_answer(self, answer: Any, sample: Question) -> float:
        """1 where the words are right, or the last word equals the verdict. Where boxes are asked for: the mean over the right boxes of the
        best IoU among those answered."""
        if sample.verdict:
            return float(answer.split()[-1:] == [sample.verdict])
        if not _asks_for_boxes(sample):
            return float(answer == sample.answer.format(*sample.boxes))
        return sum(max((iou(box, right) for box in answer), default=0.0) for right in sample.boxes) / len(sample.boxes)


_QUESTIONS = QuestionAnswering()


def task_of(task: Task, sample: Any) -> Task:
    """The task of a sample where ``task`` is what a model trains on: plain questions, which data may hold too, are a task of their own."""
    return _QUESTIONS if isinstance(sample, Question) else task


def _asks_for_boxes(sample: Question) -> bool:
    return bool(sample.boxes) and "{0}" in sample.answer and not sample.verdict


def _with_boxes(text: str, sample: Question, frame: BoxFrame) -> str:
    return text.format(*(frame.to_text(box) for box in sample.boxes))
