"""Reading what a model wrote: the think/answer structure and the one box inside the answer.

Strict on purpose (our decision 9): a response that offers two boxes, or hides one outside the answer,
gets none, so that a reward cannot be collected by hedging.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from locus_lightning.boxes import is_valid_box
from locus_lightning.types import Box

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_COMMA = r"\s*,\s*"
_BOX = re.compile(rf"[\[(]\s*({_NUMBER}){_COMMA}({_NUMBER})(?:{_COMMA}|\s*\){_COMMA}\(\s*)({_NUMBER}){_COMMA}({_NUMBER})\s*[\])]")
"""``[x1, y1, x2, y2]``, also inside JSON or more brackets, and ``(x1, y1), (x2, y2)``, as Qwen2-VL was trained to write it."""
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_STRUCTURE = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)


@dataclass(frozen=True)
class Response:
    """``box_text`` are the four numbers as written (valid, in the model's frame), or None."""

    answer: str | None
    box_text: Box | None
    well_formed: bool


def parse_response(text: str) -> Response:
    """Read a completion. Never raises, whatever the text.

    ``well_formed``: the whole text is one think block, optional white space, one answer block, and the
    answer holds exactly one box (paper, section 2: r_format).
    ``box_text``: from the answer block when there is exactly one block with exactly one box; finite, x1 < x2, y1 < y2.
    """
    answers = _ANSWER.findall(text)
    if len(answers) != 1:
        return Response(None, None, False)
    boxes = _BOX.findall(answers[0])
    structured = len(_TAG.findall(text)) == 4 and _STRUCTURE.fullmatch(text) is not None
    if len(boxes) != 1:
        return Response(answers[0], None, False)
    x1, y1, x2, y2 = (float(v) for v in boxes[0])
    box = (x1, y1, x2, y2)
    return Response(answers[0], box if is_valid_box(box) else None, structured)


def boxes_in(text: str) -> list[Box]:
    """Every valid box in a text, as written, in order: for plain answers that have no answer block."""
    found = ((float(a), float(b), float(c), float(d)) for a, b, c, d in _BOX.findall(text))
    return [box for box in found if is_valid_box(box)]


def payload(text: str) -> str:
    """The answer block where there is one, else the text without its think block."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return (found[-1] if found else re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)).strip()


def write_response(rationale: str, box_text: str) -> str:
    """The right answer in form: what supervised training teaches, and what :func:`parse_response` reads back."""
    return f"<think>{rationale}</think><answer>{box_text}</answer>"
