"""HR-Bench 4K and 8K."""

from __future__ import annotations

from locus_lightning.evaluation.base import Choice, Item, lettered, text_of
from locus_lightning.evaluation.tables import picture_bytes, rows_of


class HRBench(Choice):
    """HR-Bench 4K and 8K: 200 questions in four orders of their options; the score is the mean over rows."""

    name = "hrbench"
    where = "DreamMr/HR-Bench on the hub: hr_bench_4k.parquet or hr_bench_8k.parquet (or .tsv) in a folder of its own"

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`."""
        items = []
        for place, row in rows_of(self, ".parquet", ".tsv"):
            try:
                options = {letter: str(row[letter]) for letter in "ABCD" if row.get(letter) not in (None, "")}
                label = str(row["answer"]).strip().upper()
                if label not in options:
                    raise ValueError(f"the answer {label!r} is no option")
                text = lettered(str(row["question"]), options)
                items.append(Item(text_of(row, "index"), str(row["category"]), picture_bytes(row["image"]), text, label, options))
            except (KeyError, ValueError, TypeError) as cause:
                self.note(place, cause)
        return items
