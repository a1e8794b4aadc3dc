"""CV-Bench."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

from locus_lightning.evaluation.base import Choice, Item, Scored, lettered, text_of
from locus_lightning.evaluation.tables import picture_bytes, rows_of


class CVBench(Choice):
    """CV-Bench: the mean of 2D (itself the mean over its two sources) and 3D."""

    name = "cvbench"
    pictures_of = "COCO and ADE20K"
    where = "nyu-visionx/CV-Bench on the hub: test_2d.parquet and test_3d.parquet in a folder"

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`."""
        items = []
        for place, row in rows_of(self, ".parquet"):
            try:
                options = dict(zip("ABCDEF", (str(choice) for choice in row["choices"]), strict=False))
                label = str(row["answer"]).strip("() ").upper()
                if label not in options:
                    raise ValueError(f"the answer {label!r} is no option")
                facts = {"type": str(row["type"]), "source": str(row["source"])}
                text = lettered(str(row["question"]), options)
                items.append(Item(text_of(row, "idx"), str(row["task"]), picture_bytes(row["image"]), text, label, options, facts=facts))
            except (KeyError, ValueError, TypeError) as cause:
                self.note(place, cause)
        return items

    def figures(self, rows: Sequence[Scored]) -> dict[str, float]:
        """See :meth:`Benchmark.figures`."""
        sources: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        for row in rows:
            sources[row.item.facts["type"], row.item.facts["source"]].append(row.score)
        types: defaultdict[str, list[float]] = defaultdict(list)
        for (kind, _), scores in sources.items():
            types[kind].append(mean(scores))
        return {**super().figures(rows), **{kind: mean(scores) for kind, scores in types.items()}, "score": mean(map(mean, types.values()))}
