"""Cues in words: requests for referring expressions, and the reading of what a model answered."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.progress import track

from locus_lightning.cue_samplers.text_cue import MOST_WORDS
from locus_lightning.data.coco.index import CueSet
from locus_lightning.data.images import data_url
from locus_lightning.data.source import CueDataset, CueKey
from locus_lightning.errors import DataError
from locus_lightning.files import lines_of
from locus_lightning.types import CueSample

_REQUEST = (
    "The red box in the first picture marks a region, which the second picture shows enlarged. Write one referring expression of fewer "
    f"than {MOST_WORDS} words that singles this region out in the picture: what it is, how it looks, what is next to it. Do not mention "
    "the box, coordinates or numbers of pixels. Answer with the expression alone."
)


@dataclass(frozen=True)
class Read:
    """How many expressions were kept, why others were refused, and how many cues have none."""

    kept: int
    refused: dict[str, int]
    missing: int


def write_requests(sets: Sequence[CueDataset], path: Path, model: str, limit: int | None = None) -> int:
    """One request a cue in the OpenAI batch format, pictures inside; returns their number."""
    _ids(sets)
    total = sum(min(len(one), limit or len(one)) for one in sets)
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    with path.open("w") as file:
        for sample in track(_samples(sets, limit), description="requests", total=total):
            x1, y1, x2, y2 = sample.box
            marked = sample.image.copy()
            ImageDraw.Draw(marked).rectangle((x1 - 1, y1 - 1, x2, y2), outline=(255, 0, 0), width=2)
            around = sample.image.crop((int(x1), int(y1), int(x2), int(y2)))
            content = [
                _picture(marked),
                _picture(around.resize((max(64, around.width * 3), max(64, around.height * 3)))),
                {"type": "text", "text": _REQUEST},
            ]
            body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 64, "temperature": 0}
            line = {"custom_id": sample.id, "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
            number += 1
    return number


def _ids(sets: Sequence[CueDataset]) -> set[str]:
    """The ids of all cues.

    Raises:
        DataError: two splits share an id, so that words for one would be taken for the other's.
    """
    ids = [entry.id for one in sets if isinstance(one, CueSet) for entry in one.entries]
    if len(set(ids)) < len(ids):
        twice = next(iter(Counter(ids).most_common(1)))[0]
        raise DataError(f"two cues of the corpus have the id {twice}; give the training and the validation file different image ids.")
    return set(ids)


def _samples(sets: Sequence[CueDataset], limit: int | None) -> Iterator[CueSample]:
    for one in sets:
        for i in range(min(len(one), limit or len(one))):
            yield one[CueKey(0, i)]


def _picture(image: Image.Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image)}}


def read_answers(sets: Sequence[CueDataset], answers: Path, out: Path) -> Read:
    """Read batch answers, or plain ``{"id": ..., "text": ...}`` lines; keep what can be used, count the rest.

    Raises:
        DataError: the file cannot be read.
    """
    wanted = _ids(sets)
    kept: dict[str, str] = {}
    refused: Counter[str] = Counter()
    try:
        lines = list(lines_of(answers))
    except OSError as cause:
        raise DataError(f"the answers {answers} cannot be read ({cause.strerror}).") from cause
    for line in lines:
        key, text = _answer(line)
        if key is None or text is None:
            refused["lines that hold no answer"] += 1
        elif key not in wanted:
            refused["answers to cues of another corpus"] += 1
        elif not 0 < len(text.split()) < MOST_WORDS:
            refused[f"expressions of no words, or of {MOST_WORDS} and more"] += 1
        elif re.search(r"\d+\s*,\s*\d+|\bpixels?\b|\b(?:red|bounding) box\b", text, re.IGNORECASE):
            refused["expressions that mention coordinates or the box"] += 1
        else:
            kept[key] = text
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in sorted(kept.items())))
    return Read(len(kept), dict(refused), len(wanted - set(kept)))


def _answer(line: str) -> tuple[str | None, str | None]:
    """Id and text of a line; None where it has none. Quotes and a final full stop are not part of an expression."""
    try:
        row = json.loads(line)
        if "text" in row:
            key, text = row["id"], row["text"]
        else:
            response = row["response"].get("body") or row["response"]
            key, text = row["custom_id"], response["choices"][0]["message"]["content"]
        text = re.sub(r"<think>.*?</think>", "", str(text), flags=re.DOTALL)
        return str(key), " ".join(text.split()).strip(" \"'.")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None, None
