"""Benchmarks that run offline by rules, each read from its dataset's own files."""

from __future__ import annotations

import base64
import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from locus_lightning.backbones.base import Backbone
from locus_lightning.data.corpus import CorpusCues
from locus_lightning.data.source import CueKey
from locus_lightning.errors import DataError
from locus_lightning.evaluation.base import Benchmark, Choice, Item, Scored, YesNo, find, lettered, text_of
from locus_lightning.evaluation.vstar import SmallStar, VStar
from locus_lightning.geometry import clip_box, iou
from locus_lightning.response import boxes_in, parse_response, payload
from locus_lightning.types import CueSample, Question

csv.field_size_limit(2**30)


def rows_of(benchmark: Benchmark, *suffixes: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every table of a folder with one of these suffixes: parquet, tsv, jsonl, json.

    Raises:
        DataError: there is none.
    """
    folder = benchmark.folder
    files = (
        sorted(path for path in folder.rglob("*") if path.suffix in suffixes) if folder.is_dir() else [folder] if folder.is_file() else []
    )
    if not files:
        raise DataError(f"{folder} holds no {' or '.join(suffixes)} file of {benchmark.name}; it is {benchmark.where}.")
    for path in files:
        try:
            yield from ((f"{path.name}, row {number}", row) for number, row in enumerate(_rows(path), 1))
        except (ValueError, OSError, UnicodeDecodeError) as cause:
            benchmark.note(path.name, cause)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches(64):
            yield from batch.to_pylist()
    elif path.suffix == ".tsv":
        with path.open(newline="") as file:
            yield from csv.DictReader(file, delimiter="\t")
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            if line.strip():
                yield json.loads(line)
    else:
        content = json.loads(path.read_text())
        if not isinstance(content, list):
            raise ValueError("not a list of rows")
        yield from content


def _bytes(value: Any) -> bytes:
    """A picture in a table: the hub's ``{"bytes": ...}``, plain bytes, or base64."""
    if isinstance(value, Mapping):
        value = value["bytes"]
    found = value if isinstance(value, bytes) else base64.b64decode(value, validate=True)
    if not found:
        raise ValueError("an empty picture")
    return found


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
                items.append(Item(text_of(row, "index"), str(row["category"]), _bytes(row["image"]), text, label, options))
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
                items.append(Item(text_of(row, "idx"), str(row["task"]), _bytes(row["image"]), text, label, options, facts=facts))
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
                image = _bytes(row["image"])
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
    kind.name: kind for kind in (VStar, SmallStar, HRBench, CVBench, POPE, HallusionBench, RefCOCO, HeldOutCues)
}
