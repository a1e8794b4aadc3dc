"""lmms-eval itself runs a task made here, with the model it finds by the entry point."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from locus_lmms_eval.model import THINK, Locus, _until
from PIL import Image

TASK = """\
task: squares
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function squares.images
doc_to_text: "question"
doc_to_target: "answer"
generation_kwargs: {{max_new_tokens: 6, temperature: 0, do_sample: false}}
process_results: !function squares.score
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
"""
FUNCTIONS = """\
import io
from PIL import Image
def images(doc):
    return [Image.open(io.BytesIO(doc["image"]))]
def score(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""


@pytest.fixture
def task(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, "PNG")
    rows = [{"image": picture.getvalue(), "question": f"What is it, {i}?", "answer": "red"} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "squares.yaml").write_text(TASK.format(data=tmp_path / "data.parquet"))
    (folder / "squares.py").write_text(FUNCTIONS)
    return folder


def test_lmms_eval_runs_a_task_with_it(task, tmp_path):
    raw = tmp_path / "raw.jsonl"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # it would ask the hub what stands in the task file
    command = [sys.executable, "-m", "lmms_eval", "--model", "locus", "--model_args", f"pretrained=toy:llava,raw={raw}", "--batch_size", "2",
               "--tasks", "squares", "--include_path", str(task), "--output_path", str(tmp_path / "out"), "--log_samples"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=offline, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("*results.json")
    figures = json.loads(results.read_text())["results"]["squares"]
    assert 0 <= figures["right,none"] <= 1
    rows = [json.loads(line) for line in raw.read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == [0, 1, 2]
    assert all(row["task"] == "squares" and row["text"] for row in rows)


def requests(number, task="squares", **settings):
    settings = {"max_new_tokens": 4, "temperature": 0, **settings}
    return [
        Instance("generate_until", (f"Q{i}?", settings, lambda doc: [doc], i, task, "test"), 0, {"task": task, "doc_id": i, "repeats": 1})
        for i in range(number)
    ]


@pytest.fixture
def model():
    made = get_model("locus")("toy:llava", batch_size=2)
    assert isinstance(made, Locus)
    pictures = {i: Image.new("L", (30 + i, 20)) for i in range(3)}
    made.task_dict = {name: {"test": pictures} for name in ("squares", "squares_reasoning")}
    return made


def test_the_answer_block_is_handed_over_and_the_whole_text_kept(model, tmp_path, monkeypatch):
    said = "<think>A or B?</think><answer>B</answer>"
    monkeypatch.setattr(type(model.backbone), "decode", lambda self, ids: said)
    model.raw = tmp_path / "deep" / "raw.jsonl"
    assert model.generate_until(requests(3)) == ["B", "B", "B"]
    assert model.generate_until(requests(1, "squares_reasoning")) == [said]
    rows = [json.loads(line) for line in model.raw.read_text().splitlines()]
    assert [row["text"] for row in rows] == [said] * 4


def test_requests_of_other_settings_are_answered_in_their_order(model):
    mixed = requests(3)
    mixed[1].arguments = ("Q1?", {"max_new_tokens": 1, "temperature": 0}, *mixed[1].args[2:])
    alone = [model.generate_until([one])[0] for one in mixed]
    assert model.generate_until(mixed) == alone


def test_thinking_is_asked_for_and_given_room(model, monkeypatch):
    seen = {}
    monkeypatch.setattr(model.backbone, "encode", lambda contents: seen.setdefault("turns", contents) and [])
    monkeypatch.setattr(
        "locus_lmms_eval.model.HFRollout.generate", lambda self, b, p, n, sampling: seen.setdefault("sampling", sampling) and []
    )
    model.think = True
    with pytest.raises(ValueError, match="shorter"):
        model.generate_until(requests(1))
    assert seen["turns"][0][-1].endswith(THINK)
    assert seen["sampling"].max_new_tokens == 8192


def test_what_cannot_be_answered_is_said_in_a_sentence(model):
    model.task_dict["squares"]["test"] = {0: "a film.mp4"}
    with pytest.raises(ValueError, match="question 0 of squares comes without a picture"):
        model.generate_until(requests(1))
    with pytest.raises(ValueError, match="model_args dtyp:"):
        Locus("toy:llava", dtyp="float32")


def test_stop_strings_cut():
    assert _until("B\n\nQ: next", ["\n\n", "Q:"]) == "B"
    assert _until(" B ", None) == "B"
