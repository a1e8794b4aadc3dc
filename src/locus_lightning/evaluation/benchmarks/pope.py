"""POPE."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from locus_lightning.errors import DataError
from locus_lightning.evaluation.base import Item, Scored, YesNo, text_of
from locus_lightning.evaluation.extract import official_yes_no
from locus_lightning.files import lines_of


class POPE(YesNo):
    """POPE: is the object there? Accuracy, and F1 of yes; by file, such as adversarial, popular and random. ``official_accuracy`` follows POPE's
    own script, which reads every answer without "no" or "not" in its first sentence as yes."""

    name = "pope"
    pictures_of = "COCO val2014"
    where = "the POPE question files (coco_pope_adversarial.json and its like, one question a line) with COCO's val2014 pictures in images/"

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`."""
        items = []
        for place, row in self._lines():
            try:
                label, image = str(row["label"]).strip().casefold(), self._picture(str(row["image"]))
                if label not in ("yes", "no"):
                    raise ValueError(f"the label {label!r} is neither yes nor no")
                kind = place.split(",")[0].removesuffix(".json").removesuffix(".jsonl").removeprefix("coco_").removeprefix("pope_")
                text = str(row["text"]) + "\nAnswer with yes or no."
                items.append(Item(f"{kind}-{text_of(row, 'question_id')}", kind, image, text, label))
            except (KeyError, ValueError, TypeError) as cause:
                self.note(place, cause)
        return items

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        files = sorted([*self.folder.glob("*.json"), *self.folder.glob("*.jsonl")])
        if not files:
            raise DataError(f"{self.folder} holds no question file of POPE; it is {self.where}.")
        for path in files:
            for number, line in enumerate(lines_of(path), 1):
                if line.strip():
                    try:
                        yield f"{path.name}, line {number}", json.loads(line)
                    except ValueError as cause:
                        self.note(f"{path.name}, line {number}", cause)

    def _picture(self, name: str) -> Path:
        path = self.folder / "images" / name
        if not path.is_file():
            raise ValueError(f"the picture {path} does not exist")
        return path

    def figures(self, rows: Sequence[Scored]) -> dict[str, float]:
        """See :meth:`Benchmark.figures`; ``score`` is the accuracy."""
        figures = super().figures(rows)
        for kind in ["", *sorted({row.item.kind for row in rows})]:
            some = [row for row in rows if kind in ("", row.item.kind)]
            right = sum(row.item.label == "yes" and row.extracted == "yes" for row in some)
            predicted, true = sum(row.extracted == "yes" for row in some), sum(row.item.label == "yes" for row in some)
            figures[f"f1{'_' if kind else ''}{kind}"] = 2 * right / (predicted + true) if predicted + true else 0.0
        official = mean(float(official_yes_no(row.text) == row.item.label) for row in rows)  # an unread answer is a yes there
        return {**figures, "official_accuracy": official, "yes_rate": mean(row.extracted == "yes" for row in rows)}
