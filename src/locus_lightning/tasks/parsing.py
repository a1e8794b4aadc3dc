"""Parsing what a model wrote: the think/answer structure, and the boxes inside the answer.

Strict on purpose (our decision 9): a response that offers more boxes than were asked for, or hides one outside the answer, gets none, so
that a reward cannot be collected by hedging.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from locus_lightning.boxes import BoxFrame, is_valid_box
from locus_lightning.types import Box

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_COMMA = r"\s*,\s*"
_BOX = re.compile(rf"[\[(]\s*({_NUMBER}){_COMMA}({_NUMBER})(?:{_COMMA}|\s*\){_COMMA}\(\s*)({_NUMBER}){_COMMA}({_NUMBER})\s*[\])]")
"""``[x1, y1, x2, y2]``, also inside JSON or more brackets, and ``(x1, y1), (x2, y2)``, as Qwen2-VL was trained to write it."""
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_STRUCTURE = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
_OPENED = re.compile(r"<think>\s*$")


@dataclass(frozen=True)
class Response:
    """``answer`` is the text of the one answer block, or None; ``structured`` says whether the whole text is one think block, optional white
    space, and one answer block (paper, section 2: r_format)."""

    answer: str | None
    structured: bool


def parse_response(text: str) -> Response:
    """Find the answer block of a completion. Never raises, whatever the text."""
    answers = _ANSWER.findall(text)
    if len(answers) != 1:
        return Response(None, False)
    return Response(answers[0], len(_TAG.findall(text)) == 4 and _STRUCTURE.fullmatch(text) is not None)


def parse_boxes(text: str, frame: BoxFrame, count: int) -> tuple[tuple[Box, ...] | None, bool]:
    """The boxes of the answer block in original pixels, and whether the response is well formed.

    Args:
        text: a completion, with what the chat template had opened.
        frame: in which the boxes are written.
        count: how many boxes are asked for; an answer with more or fewer has none.

    Returns:
        ``count`` finite boxes with x1 < x2 and y1 < y2 in original pixels, or None; whether the structure is complete and the answer holds
        ``count`` boxes, valid or not.
    """
    response = parse_response(text)
    written = _BOX.findall(response.answer or "")
    if len(written) != count:
        return None, False
    boxes = [frame.to_original((float(a), float(b), float(c), float(d))) for a, b, c, d in written]
    valid = all(is_valid_box(box) for box in boxes) and all(is_valid_box([float(v) for v in row]) for row in written)
    return tuple(boxes) if valid else None, response.structured


def boxes_in(text: str) -> list[Box]:
    """Every valid box in a text, as written, in order: for plain answers that have no answer block."""
    boxes = ((float(a), float(b), float(c), float(d)) for a, b, c, d in _BOX.findall(text))
    return [box for box in boxes if is_valid_box(box)]


def extract_answer(text: str) -> str:
    """The answer part of a plain response, for benchmarks: everything up to the last ``</think>`` is dropped; of the rest the last answer
    block counts, read to the end where it is not closed. A think block that is never closed holds no answer."""
    rest = text.rsplit("</think>", 1)[-1]
    blocks = re.findall(r"<answer>(.*?)(?:</answer>|$)", rest, re.DOTALL)
    return (str(blocks[-1]) if blocks else re.sub(r"<think>.*$", "", rest, flags=re.DOTALL)).strip()


def write_response(rationale: str, answer: str) -> str:
    """The right answer in form: what supervised training teaches, and what :func:`parse_response` finds again."""
    return f"<think>{rationale}</think><answer>{answer}</answer>"


def opened_by(prompt_text: str) -> str:
    """What a chat template has already written of the answer: a ``<think>`` at its very end, or nothing."""
    match = _OPENED.search(prompt_text)
    return match[0] if match else ""


def without_opened(target: str, opened: str) -> str:
    """A right answer without what the chat template has already written."""
    return target.removeprefix(opened.strip()) if opened else target
