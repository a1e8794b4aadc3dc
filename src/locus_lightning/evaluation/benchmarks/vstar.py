"""V*Bench (craigwu/vstar_bench): multiple-choice questions with boxes beside each picture. SmallStar is written in its format."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from locus_lightning.errors import DataError
from locus_lightning.evaluation.base import Choice, Item
from locus_lightning.files import lines_of

QUESTIONS = "test_questions.jsonl"


class VStar(Choice):
    """V*Bench: direct attributes and relative position."""

    name = "vstar"
    where = f"craigwu/vstar_bench on the hub: a folder with {QUESTIONS} and the pictures it names, each with a .json beside it"

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`."""
        return read_vstar(self.folder, self.malformed)


class SmallStar(VStar):
    """Small things among distractors, drawn here."""

    name = "smallstar"
    where = "made by `locus smallstar FOLDER`"


def read_vstar(folder: Path, malformed: list[str] | None = None) -> list[Item]:
    """All questions of a folder in V*Bench's layout.

    Args:
        folder: of the benchmark.
        malformed: takes what is wrong with rows that are left out; None: such a row is an error.

    Raises:
        DataError: no such folder or file; or a row that is not of the format, where ``malformed`` is None.
    """
    path = folder / QUESTIONS
    if not path.is_file():
        raise DataError(
            f"{folder} holds no {QUESTIONS}; give a folder in V*Bench's layout (download craigwu/vstar_bench, or make SmallStar with "
            "`locus smallstar FOLDER`)."
        )
    items = []
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            items.append(_item(folder, json.loads(line)))
        except (ValueError, KeyError, TypeError, OSError) as cause:
            reason = f"{path}, line {number}, is not a V*Bench question ({type(cause).__name__}: {cause})."
            if malformed is None:
                raise DataError(reason) from cause
            malformed.append(reason)
    return items


def _item(folder: Path, row: dict[str, Any]) -> Item:
    image, text, label = folder / row["image"], str(row["text"]), str(row["label"]).strip()
    if not image.is_file():
        raise FileNotFoundError(f"the picture {image} does not exist; is the folder complete?")
    beside = image.with_suffix(".json")
    facts: dict[str, Any] = json.loads(beside.read_text()) if beside.is_file() else {}
    boxes = tuple((float(x), float(y), float(x + w), float(y + h)) for x, y, w, h in facts.get("bbox", []))
    named = {"targets": json.dumps([str(name) for name in facts.get("target_object", [])])}
    options = options_of(text)
    return Item(str(row["question_id"]), str(row["category"]), image, text, _letter(label, options), options, boxes, named)


def _letter(label: str, options: Mapping[str, str]) -> str:
    """A label as the letter of an option: ``B``, ``b``, ``(B)``, ``B.``, or the option's own words.

    Raises:
        ValueError: it is none of them.
    """
    bare = re.fullmatch(r"\(?([A-Ha-h])[).:]?", label)
    if bare and (not options or bare[1].upper() in options):
        return bare[1].upper()
    same = [letter for letter, words in options.items() if words.casefold().strip(" .") == label.casefold().strip(" .")]
    if len(same) != 1:
        raise ValueError(f"the label {label!r} is no option of {', '.join(options) or 'none'}")
    return same[0]


def options_of(text: str) -> dict[str, str]:
    """The lettered options that a text lists on lines of their own, as ``(A) red``, ``A) red`` or ``A. red``; empty unless they begin with A
    and go on."""
    options = {letter: option.strip() for letter, option in re.findall(r"^ *\(?([A-H])[.):] *(.+)$", text, re.MULTILINE)}
    return options if len(options) > 1 and "".join(options) == "ABCDEFGH"[: len(options)] else {}
