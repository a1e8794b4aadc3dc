"""ZoomBench."""

from __future__ import annotations

import re
from typing import Any

from locus_lightning.evaluation.base import LETTERS, Choice, Item, lettered, text_of
from locus_lightning.evaluation.benchmarks.vstar import options_of
from locus_lightning.evaluation.tables import picture_bytes, rows_of
from locus_lightning.types import Box


class ZoomBench(Choice):
    """ZoomBench's multiple-choice questions (621 of its 845); open ones, which its authors let a judge mark, are not asked."""

    name = "zoombench"
    where = "inclusionAI/ZoomBench on the hub: data/test.parquet in a folder"

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`; the question is asked as it stands, with its options in it."""
        items = []
        for place, row in rows_of(self, ".parquet"):
            try:
                if str(row["question_type"]).strip().casefold() != "mcq":
                    continue
                text = text_of(row, "query", "prompt", "question").replace("<image>", "").strip()
                inside = options_of(text)
                options = inside or options_of(text_of(row, "options"))
                letter = re.match(r"\(?([A-H])\b", text_of(row, "response", "answer").strip().upper())
                if letter is None or letter[1] not in options:
                    raise ValueError(f"the answer {text_of(row, 'response', 'answer')!r} is no option of {', '.join(options) or 'none'}")
                lines = text if inside else lettered(text, options)
                wording = lines if lines.endswith(LETTERS) else f"{lines}\n{LETTERS}"
                kind = str(row.get("category") or row.get("dimension") or "")
                items.append(
                    Item(text_of(row, "id"), kind, picture_bytes(row["image"]), wording, letter[1], options, _pixel_box(row.get("bbox")))
                )
            except (KeyError, ValueError, TypeError) as cause:
                self.note(place, cause)
        return items


def _pixel_box(value: Any) -> tuple[Box, ...]:
    """A row's ``[x1, y1, x2, y2]`` in pixels, where it has a valid one."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return ()
    x1, y1, x2, y2 = (float(v) for v in value)
    return ((x1, y1, x2, y2),) if x2 > x1 and y2 > y1 else ()
