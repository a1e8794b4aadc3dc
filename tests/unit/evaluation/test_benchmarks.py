"""Benchmarks in their datasets' true formats, with right, wrong and odd rows; evaluations that stop and go on."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from locus_lightning.errors import ConfigError, DataError
from locus_lightning.evaluation.base import Scored
from locus_lightning.evaluation.benchmarks import POPE, SUITES, CVBench, HallusionBench, HRBench, RefCOCO, VStar, ZoomBench
from locus_lightning.evaluation.extract import extract_yes_no
from locus_lightning.evaluation.html import page
from locus_lightning.evaluation.runner import ANSWERS, RESULT, Settings, difference, evaluate, mean_result
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.tasks.parsing import extract_answer
from tests.conftest import contents


def jpeg(seed=0, size=(64, 48)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def table(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("**No**, there is none", "no"),
        ("Yes, there is no dog on the left but one on the right", "yes"),
        ("<think>yes</think><answer>No</answer>", "no"),
        ("There is no dog", "no"),
        ("It could be yes or no", None),
        ("I know nothing", None),
        ("", None),
    ],
)
def test_yes_and_no_are_read(text, said):
    assert extract_yes_no(text) == said


def test_the_answer_block_is_what_counts():
    assert extract_answer("<think>A</think><answer> B </answer>") == "B"
    assert extract_answer("<think>A, so") == ""
    assert extract_answer("plain") == "plain"


def hr_rows():
    row = {"index": 0, "question": "What colour?", "answer": "B", "A": "red", "B": "blue", "C": "green", "D": "pink", "category": "single"}
    return [
        row,
        {**row, "index": 1, "answer": "C", "category": "cross"},
        {**row, "index": 2, "answer": "E"},
        {**row, "index": 3, "image": "!"},
    ]


@pytest.mark.parametrize("suffix", ["parquet", "tsv"])
def test_hrbench(tmp_path, suffix):
    rows = [{"image": base64.b64encode(jpeg()).decode(), **row} for row in hr_rows()]
    if suffix == "parquet":
        table(tmp_path / "hr_bench_4k.parquet", rows)
    else:
        lines = ["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)]
        (tmp_path / "hr_bench_4k.tsv").write_text("\n".join(lines) + "\n")
    benchmark = HRBench(tmp_path)
    items = benchmark.load()
    assert [(i.id, i.label, i.kind) for i in items] == [("0", "B", "single"), ("1", "C", "cross")]
    assert "(B) blue" in items[0].text
    assert items[0].picture().size == (64, 48)
    assert len(benchmark.malformed) == 2
    assert "no option" in benchmark.malformed[0]


def test_cvbench_is_the_mean_of_2d_over_its_sources_and_3d(tmp_path):
    facts = [("2D", "Count", "ADE20K"), ("2D", "Relation", "COCO"), ("2D", "Count", "COCO"), ("3D", "Depth", "Omni3D")]
    rows = [
        {"idx": i, "type": kind, "task": task, "source": source, "image": {"bytes": jpeg(i), "path": None}, "question": "How many?",
         "choices": ["1", "2"], "answer": "(A)"} for i, (kind, task, source) in enumerate(facts)
    ]  # fmt: skip
    table(tmp_path / "test_2d.parquet", [*rows, {**rows[0], "idx": 9, "answer": "(Z)"}])
    benchmark = CVBench(tmp_path)
    items = benchmark.load()
    assert len(items) == 4
    assert len(benchmark.malformed) == 1
    figures = benchmark.figures([Scored(item, "", "", score) for item, score in zip(items, (1.0, 0.0, 1.0, 0.0), strict=True)])
    assert figures["2D"] == pytest.approx((1.0 + 0.5) / 2)
    assert figures["score"] == pytest.approx((0.75 + 0.0) / 2)
    assert figures["Count"] == 1


@pytest.mark.parametrize("layout", ["A. {}", "A) {}", "(A) {}"])
def test_zoombench_asks_its_multiple_choice_questions(tmp_path, layout):
    def listed(*options):
        return "".join(f"\n{layout.replace('A', letter, 1).format(option)}" for letter, option in zip("ABCD", options, strict=False))

    picture = {"bytes": jpeg(), "path": None}
    row = {"id": "0", "query": "<image>What is on the sign?" + listed("a fox", "a cat", "a dog"), "response": "B", "question_type": "mcq",
           "image": picture, "crop_image": picture, "bbox": [1, 2, 30, 40], "category": "OCR"}  # fmt: skip
    rows = [row, {**row, "id": "1", "response": "(C) a dog", "bbox": [5, 5, 5, 9]}, {**row, "id": "2", "response": "D"},
            {**row, "id": "3", "query": "How many?", "response": "4", "question_type": "oq"}, {**row, "id": "4", "query": "Which?"}]  # fmt: skip
    table(tmp_path / "test.parquet", rows)
    benchmark = ZoomBench(tmp_path)
    items = benchmark.load()
    assert [(i.id, i.label, i.kind) for i in items] == [("0", "B", "OCR"), ("1", "C", "OCR")]
    assert items[0].options == {"A": "a fox", "B": "a cat", "C": "a dog"}
    assert items[0].boxes == ((1.0, 2.0, 30.0, 40.0),)
    assert items[1].boxes == (), "an empty box is none"
    assert items[0].text.startswith("What is on the sign?")
    assert items[0].text.count("a cat") == 1
    assert len(benchmark.malformed) == 2, "an answer that is no option, and a question without options; the open one is left out by rule"
    assert benchmark.read(items[0], "The answer is b", None) == ("B", 1.0)
    assert benchmark.read(items[0], "<think>A</think><answer>a cat</answer>", None) == ("B", 1.0)
    assert benchmark.read(items[0], "a fox or a cat", None) == (None, 0.0)


def test_pope_gives_accuracy_and_f1(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(jpeg())
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"}
    lines = [row, {**row, "question_id": 2, "label": "no"}, {**row, "question_id": 3}, {**row, "question_id": 4, "label": "maybe"},
             {**row, "question_id": 5, "image": "gone.jpg"}]  # fmt: skip
    (tmp_path / "coco_pope_random.json").write_text("\n".join(map(json.dumps, lines)) + "\n{broken\n")
    benchmark = POPE(tmp_path)
    items = benchmark.load()
    assert [(i.id, i.kind, i.label) for i in items] == [
        ("random-1", "random", "yes"),
        ("random-2", "random", "no"),
        ("random-3", "random", "yes"),
    ]
    assert len(benchmark.malformed) == 3
    said = [("Yes.", "yes"), ("yes", "yes"), ("No", "no")]
    rows = [Scored(item, text, read, float(read == item.label)) for item, (text, read) in zip(items, said, strict=True)]
    figures = benchmark.figures(rows)
    assert figures["score"] == pytest.approx(1 / 3)
    assert figures["f1"] == pytest.approx(2 * 1 / (2 + 2))
    assert figures["f1_random"] == figures["f1"]
    assert figures["yes_rate"] == pytest.approx(2 / 3)


def test_hallusionbench_counts_figures_and_questions_that_are_wholly_right(tmp_path):
    (tmp_path / "hallusion_bench" / "VD").mkdir(parents=True)
    (tmp_path / "hallusion_bench" / "VD" / "0.png").write_bytes(jpeg())
    row = {"category": "VD", "subcategory": "chart", "visual_input": "1", "set_id": "0", "figure_id": "0", "question_id": "0",
           "question": "Is it?", "gt_answer": "1", "filename": "./VD/0.png"}  # fmt: skip
    rows = [row, {**row, "question_id": "1", "gt_answer": "0"}, {**row, "figure_id": "1"}, {**row, "visual_input": "0"},
            {**row, "filename": "./VD/gone.png"}]  # fmt: skip
    (tmp_path / "HallusionBench.json").write_text(json.dumps(rows))
    benchmark = HallusionBench(tmp_path)
    items = benchmark.load()
    assert len(items) == 3
    assert len(benchmark.malformed) == 1
    figures = benchmark.figures([Scored(item, "", None, score) for item, score in zip(items, (1.0, 0.0, 1.0), strict=True)])
    assert figures["score"] == pytest.approx(2 / 3)
    assert figures["by_figure"] == 0.5, "figure 0 has a wrong answer, figure 1 none"
    assert figures["by_question"] == 0.5, "question 0 is right in both figures"


def test_refcoco_counts_every_expression(tmp_path, make_backbone):
    row = {
        "question_id": "1",
        "image": {"bytes": jpeg(), "path": None},
        "answer": ["left dog", "brown one"],
        "bbox": [8.0, 6.0, 24.0, 20.0],
    }
    table(tmp_path / "val.parquet", [row, {**row, "question_id": "2", "bbox": [8.0, 6.0, 0.0, 20.0]}])
    benchmark, backbone = RefCOCO(tmp_path), make_backbone("qwen2_vl")
    items = benchmark.load()
    assert [item.text for item in items] == ["left dog", "brown one"]
    assert items[0].boxes == ((8.0, 6.0, 32.0, 26.0),)
    assert len(benchmark.malformed) == 1
    asked = benchmark.ask(items[0], backbone, "")
    assert "left dog" in contents(backbone, [asked])[0][1]
    assert "thousandths" in contents(backbone, [asked])[0][1]
    right = f"<answer>{backbone.frame(asked.image.size).to_text(items[0].boxes[0])}</answer>"
    assert benchmark.read(items[0], right, backbone)[1] == 1
    assert benchmark.read(items[0], "[0, 0, 1000, 1000]", backbone)[1] == 0
    assert benchmark.read(items[0], "on the left", backbone) == (None, 0.0)


@pytest.mark.parametrize("name", list(SUITES))
def test_a_missing_dataset_says_where_to_get_it(tmp_path, name):
    with pytest.raises(DataError):
        SUITES[name](tmp_path / "nothing").load()
    assert SUITES[name].where


def vstar_folder(root, number=6):
    (root / "direct_attributes").mkdir(parents=True)
    lines = []
    for i in range(number):
        (root / "direct_attributes" / f"{i}.jpg").write_bytes(jpeg(i))
        (root / "direct_attributes" / f"{i}.json").write_text(json.dumps({"bbox": [[4, 4, 10, 8]]}))
        lines.append({"image": f"direct_attributes/{i}.jpg", "text": "What?\n(A) red\n(B) blue", "category": "direct_attributes",
                      "question_id": i, "label": "A"})  # fmt: skip
    (root / "test_questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"image": "gone.jpg"}\n')
    return root


def test_an_evaluation_goes_on_where_it_stopped_and_gives_the_same_figures(tmp_path, make_backbone, monkeypatch):
    data, backbone = vstar_folder(tmp_path / "data"), make_backbone("llava")
    settings = Settings(max_new_tokens=4, batch_size=2)
    whole = evaluate(backbone, "toy", VStar(data), tmp_path / "whole", settings, HFRollout())
    assert whole["questions"] == 6
    assert len(whole["malformed"]) == 1
    lines = (tmp_path / "whole" / ANSWERS).read_text().splitlines()
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / ANSWERS).write_text("\n".join(lines[:4]) + '\n{"id": "3", "te')  # killed while writing
    asked = []
    original = VStar.ask
    monkeypatch.setattr(VStar, "ask", lambda self, item, *more: asked.append(item.id) or original(self, item, *more))
    again = evaluate(backbone, "toy", VStar(data), tmp_path / "part", settings, HFRollout())
    assert asked == ["3", "4", "5", "0"], "the missing ones, and the first one for the record of the prompt"
    assert again == whole
    assert json.loads((tmp_path / "part" / RESULT).read_text()) == whole
    evaluate(backbone, "toy", VStar(data), tmp_path / "part", settings, HFRollout())
    assert asked[4:] == ["0"], "nothing is asked twice"
    with pytest.raises(ConfigError, match="max_new_tokens 4, not 5"):
        evaluate(backbone, "toy", VStar(data), tmp_path / "part", Settings(max_new_tokens=5), HFRollout())
    others = vstar_folder(tmp_path / "others")
    rows = others / "test_questions.jsonl"
    rows.write_text(rows.read_text().replace("red", "green", 1))
    with pytest.raises(ConfigError, match="answers with data"):
        evaluate(backbone, "toy", VStar(others), tmp_path / "part", settings, HFRollout())
    other = make_backbone("llava", seed=1)
    with pytest.raises(ConfigError, match="weights"):
        evaluate(other, "toy", VStar(data), tmp_path / "part", settings, HFRollout())


def test_differences_are_paired_and_seeded():
    def result(model, scores):
        return {"model": model, "scores": {str(i): {"score": s, "kind": "ab"[i % 2]} for i, s in enumerate(scores)}}

    a, b = result("a", [0, 0, 1, 1] * 25), result("b", [1, 0, 1, 1] * 25)
    found = difference(a, b)
    assert found == difference(a, b)
    mean, low, high = found[""]
    assert mean == pytest.approx(0.25)
    assert 0.1 < low < mean < high < 0.4
    assert found["b"] == (0.0, 0.0, 0.0)
    with pytest.raises(ConfigError, match="no question in common"):
        difference(a, {"model": "c", "scores": {}})
    both = mean_result([a, b])
    assert both["scores"]["0"] == {"score": 0.5, "kind": "a"}
    assert difference(a, both)[""][0] == pytest.approx(mean / 2)


def test_the_page_shows_what_was_won_and_lost(tmp_path, make_backbone):
    data, backbone = vstar_folder(tmp_path / "data"), make_backbone("llava")
    one = evaluate(backbone, "<one>", VStar(data), tmp_path / "one", Settings(max_new_tokens=4), HFRollout())
    two = json.loads(json.dumps(one))
    two["model"] = "two"
    two["scores"]["0"]["score"] = 1.0
    benchmark = VStar(data)
    items = benchmark.load()
    answers = [{item.id: {"text": "<b>B</b>"} for item in items}] * 2
    made = page(benchmark, items, [one, two], difference(one, two), answers, 3)
    assert "Won: 1<" in made
    assert "Both wrong: 5<" in made
    assert "&lt;one&gt;" in made
    assert "<b>B" not in made
    assert made.count("data:image/jpeg;base64") == 4
    assert "Rows left out: 1" in made


@pytest.mark.parametrize(
    ("label", "letter"), [("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("Blue", "B"), (" red ", "A"), ("C", None), ("green", None)]
)
def test_labels_of_vstar_in_every_form(tmp_path, label, letter):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    row = {"image": "x.png", "text": "Which?\n(A) red\n(B) blue", "category": "k", "question_id": 0, "label": label}
    (tmp_path / "test_questions.jsonl").write_text(json.dumps(row))
    benchmark = VStar(tmp_path)
    items = benchmark.load()
    assert [item.label for item in items] == ([letter] if letter else [])
    assert len(benchmark.malformed) == (0 if letter else 1)


def test_a_record_may_hold_any_character(tmp_path):
    """U+2028 and U+0085 end no line, and a byte order mark is no part of the first."""
    from locus_lightning.files import lines_of

    path = tmp_path / "x.jsonl"
    path.write_bytes('\ufeff{"a": "one\u2028two\u0085three"}\r\n{"a": 2}\n'.encode())
    assert [json.loads(line) for line in lines_of(path)] == [{"a": "one\u2028two\u0085three"}, {"a": 2}]
