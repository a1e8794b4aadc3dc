"""HallusionBench."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean

from locus_lightning.evaluation.base import Item, Scored, YesNo
from locus_lightning.evaluation.tables import rows_of


class HallusionBench(YesNo):
    """HallusionBench, questions with a picture, by yes/no rules: accuracy by answer, by figure and by question."""

    name = "hallusionbench"
    where = "HallusionBench.json with the pictures of hallusion_bench.zip under hallusion_bench/"

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`."""
        items = []
        for place, row in rows_of(self, ".json"):
            try:
                if str(row["visual_input"]) == "0":
                    continue  # asked without a picture
                name = str(row["filename"]).removeprefix("./")
                image = next((p for p in (self.folder / name, self.folder / "hallusion_bench" / name) if p.is_file()), None)
                if image is None:
                    raise ValueError(f"the picture {name} does not exist")
                label = {"1": "yes", "0": "no"}[str(row["gt_answer"])]
                facts = {key: str(row[key]) for key in ("category", "subcategory", "set_id", "figure_id", "question_id")}
                text = str(row["question"]) + "\nAnswer with yes or no."
                items.append(Item("-".join(facts.values()), str(row["category"]), image, text, label, facts=facts))
            except (KeyError, ValueError, TypeError) as cause:
                self.note(place, cause)
        return items

    def figures(self, rows: Sequence[Scored]) -> dict[str, float]:
        """See :meth:`Benchmark.figures`; a figure, or a question, counts where all its answers are right."""

        def all_right(*keys: str) -> float:
            groups: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
            for row in rows:
                groups[tuple(row.item.facts[key] for key in keys)].append(row.score)
            return mean(float(all(group)) for group in groups.values())

        shared = ("category", "subcategory", "set_id")
        return {**super().figures(rows), "by_figure": all_right(*shared, "figure_id"), "by_question": all_right(*shared, "question_id")}
