"""Benchmarks that run offline by rules, each read from its dataset's own files."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from locus_lightning.backbones.base import Backbone
from locus_lightning.data.corpus import CorpusCues
from locus_lightning.data.source import CueKey
from locus_lightning.errors import DataError
from locus_lightning.evaluation.base import LETTERS, Benchmark, Choice, Item, Scored, YesNo, find, lettered, text_of
from locus_lightning.evaluation.tables import picture_bytes, rows_of
from locus_lightning.evaluation.vstar import SmallStar, VStar, options_of
from locus_lightning.geometry import clip_box, iou
from locus_lightning.response import boxes_in, parse_response, payload
from locus_lightning.types import Box, CueSample, Question


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


class CVBench(Choice):
    """CV-Bench: the mean of 2D (itself the mean over its two sources) and 3D."""

    name = "cvbench"
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
                asked = lines if lines.endswith(LETTERS) else f"{lines}\n{LETTERS}"
                kind = str(row.get("category") or row.get("dimension") or "")
                items.append(
                    Item(text_of(row, "id"), kind, picture_bytes(row["image"]), asked, letter[1], options, _pixel_box(row.get("bbox")))
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


class POPE(YesNo):
    """POPE: is the object there? Accuracy, and F1 of yes; by file, such as adversarial, popular and random."""

    name = "pope"
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
            for number, line in enumerate(path.read_text().splitlines(), 1):
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
        found = super().figures(rows)
        for kind in ["", *sorted({row.item.kind for row in rows})]:
            some = [row for row in rows if kind in ("", row.item.kind)]
            right = sum(row.item.label == "yes" and row.read == "yes" for row in some)
            said, true = sum(row.read == "yes" for row in some), sum(row.item.label == "yes" for row in some)
            found[f"f1{'_' if kind else ''}{kind}"] = 2 * right / (said + true) if said + true else 0.0
        return {**found, "yes_rate": mean(row.read == "yes" for row in rows)}


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


class RefCOCO(Benchmark):
    """RefCOCO, RefCOCO+ and RefCOCOg: the box of an expression; ACC@0.5, every expression counts."""

    name = "refcoco"
    where = "a split of lmms-lab/RefCOCO, RefCOCOplus or RefCOCOg on the hub: its parquet files in a folder"

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`."""
        items = []
        for place, row in rows_of(self, ".parquet"):
            try:
                x, y, w, h = (float(v) for v in row["bbox"])
                if w <= 0 or h <= 0:
                    raise ValueError(f"the box {row['bbox']} is empty")
                said = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
                image = picture_bytes(row["image"])
                for k, words in enumerate(said):
                    items.append(
                        Item(f"{text_of(row, 'question_id', 'file_name')}-{k}", "", image, str(words), "", boxes=((x, y, x + w, y + h),))
                    )
            except (KeyError, ValueError, TypeError) as cause:
                self.note(place, cause)
        return items

    def ask(self, item: Item, backbone: Backbone, instruction: str) -> Question:
        """The expression, and the model's own unit."""
        return find(item.picture(), item.text, backbone, instruction)

    def read(self, item: Item, text: str, backbone: Backbone) -> tuple[str | None, float]:
        """See :meth:`Benchmark.read`; the first box counts."""
        found = boxes_in(payload(text))
        if not found:
            return None, 0.0
        plain = item.question()
        box = clip_box(backbone.frame(plain).to_original(found[0]), plain.image.size)
        return str([round(v, 1) for v in box]), float(iou(box, item.boxes[0]) >= 0.5)


class HeldOutCues(Benchmark):
    """Cue search on a corpus' held-out cues: mean IoU, ACC@0.5 and 0.75. The one benchmark that shows a crop."""

    name = "cues"
    where = "a corpus that `locus data build` wrote"
    max_new_tokens = 256

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`."""
        self.data = CorpusCues(str(self.folder)).dataset("val", 0)
        samples = [self.data[CueKey(0, i)] for i in range(len(self.data))]
        self.samples: dict[str, CueSample] = {sample.id: sample for sample in samples}
        return [Item(s.id, s.cue.window.size_bin, b"", "", "", boxes=(s.box,)) for s in samples]

    def ask(self, item: Item, backbone: Backbone, instruction: str) -> CueSample:
        """Scene and crop, in the backbone's own prompt."""
        return self.samples[item.id]

    def read(self, item: Item, text: str, backbone: Backbone) -> tuple[str | None, float]:
        """See :meth:`Benchmark.read`; the score is the IoU."""
        sample, response = self.samples[item.id], parse_response(text)
        if response.box_text is None:
            return None, 0.0
        box = clip_box(backbone.frame(sample).to_original(response.box_text), sample.image.size)
        return str([round(v, 1) for v in box]), iou(box, sample.box)

    def figures(self, rows: Sequence[Scored]) -> dict[str, float]:
        """See :meth:`Benchmark.figures`."""
        shares = {f"acc{t}": mean(float(row.score >= t) for row in rows) for t in (0.5, 0.75)}
        return {**super().figures(rows), **shares, "parse_rate": mean(row.read is not None for row in rows)}


SUITES: dict[str, type[Benchmark]] = {
    kind.name: kind for kind in (VStar, SmallStar, HRBench, CVBench, ZoomBench, POPE, HallusionBench, RefCOCO, HeldOutCues)
}
