"""V*Bench's file format: multiple-choice questions with boxes beside each picture (craigwu/vstar_bench). SmallStar is written in it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from locus_lightning.errors import DataError
from locus_lightning.types import Box, Question

QUESTIONS = "test_questions.jsonl"


@dataclass(frozen=True)
class Item:
    """One question of a benchmark; the picture is opened when it is needed.

    ``label`` is the right letter; ``options`` by letter; ``boxes`` of the targets, original pixels, may be empty.
    """

    id: str
    kind: str
    image: Path
    text: str
    label: str
    options: dict[str, str]
    boxes: tuple[Box, ...] = ()

    def question(self) -> Question:
        """As a model is asked."""
        with Image.open(self.image) as file:
            picture = file.convert("RGB")
        return Question(self.id, picture, _literal(self.text), self.label, task=self.kind)


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def read_vstar(folder: Path) -> list[Item]:
    """All questions of a folder in V*Bench's layout.

    Raises:
        DataError: no such folder or file, or a row that is not of the format.
    """
    path = folder / QUESTIONS
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {QUESTIONS}; give a folder in V*Bench's layout (download craigwu/vstar_bench, or make SmallStar with "
            "`locus smallstar FOLDER`)."
        )
    items = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            image, text, label = folder / row["image"], str(row["text"]), str(row["label"]).strip()
            beside = image.with_suffix(".json")
            facts: dict[str, Any] = json.loads(beside.read_text()) if beside.is_file() else {}
            boxes = tuple((float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in facts.get("bbox", []))
            items.append(Item(str(row["question_id"]), str(row["category"]), image, text, label, options_of(text), boxes))
        except (ValueError, KeyError, TypeError) as cause:
            raise DataError(f"{path}, line {number}, is not a V*Bench question ({type(cause).__name__}: {cause}).") from cause
        if not image.is_file():
            raise DataError(f"{path}, line {number}: the picture {image} does not exist; is the folder complete?")
    return items


def options_of(text: str) -> dict[str, str]:
    """The lettered options that a question lists: ``(A) red`` on a line of its own."""
    return {letter: option.strip() for letter, option in re.findall(r"^\(([A-H])\) *(.+)$", text, re.MULTILINE)}


def extract_letter(text: str, options: dict[str, str]) -> str | None:
    """The option that an answer names, or None where it names none or several.

    Read from the answer block where there is one. In order: the answer is a letter; it begins with a lettered option; it says
    "answer is X"; it is an option's words, or holds the words of one option alone.
    """
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    said = (found[-1] if found else re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)).strip()
    letters = "".join(options) or "ABCDEFGH"
    for pattern in (
        rf"[(\[]?([{letters}])[)\].:]?",
        rf"[(\[]?([{letters}])[)\].:]\s.*",
        rf".*\b(?:answer|option|choice)\b(?: is|:)?\s*:?\s*\**[(\[]?([{letters}])\b[)\]]?.*",
    ):
        match = re.fullmatch(pattern, said, re.DOTALL | re.IGNORECASE)
        if match:
            return match[1].upper()
    plain = said.casefold().rstrip(".")
    same = [letter for letter, option in options.items() if option.casefold().rstrip(".") == plain]
    held = [letter for letter, option in options.items() if re.search(rf"\b{re.escape(option.casefold())}\b", plain)]
    chosen = same or held
    return chosen[0] if len(chosen) == 1 else None
