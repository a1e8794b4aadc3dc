"""``locus eval`` and ``locus analyze`` as a user meets them; on real photos where some lie beside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT

PHOTOS = next((p for p in (ROOT.parent / "shared" / "coco_mini", ROOT / "coco_mini") if p.is_dir()), None)


def test_two_models_compared_and_gone_on_with(locus, tmp_path):
    words = ("eval", "toy:llava", "--compare", "toy:qwen2_5_vl", "--suite", "smallstar", "--limit", "3", "--out", "out")
    status, out, err = locus(*words)
    assert status == 0, err
    assert "difference, 95" in out
    folder = tmp_path / "out" / "smallstar"
    results = [json.loads((folder / name / "result.json").read_text()) for name in ("toy_llava", "toy_qwen2_5_vl")]
    assert [r["questions"] for r in results] == [6, 6]
    assert all({"score", "direct_attributes", "relative_position"} <= r["figures"].keys() for r in results)
    assert results[1]["image_budget"]["size"]["longest_edge"] == 112 * 112
    assert "compare.html" in {p.name for p in (folder / "toy_qwen2_5_vl").iterdir()}


def test_a_run_its_model_and_its_adapter_say_the_same(locus, tmp_path):
    assert locus("toy", "llava_onevision", "base")[0] == 0
    config = ROOT / "tests" / "configs" / "lora_onevision.yaml"
    assert locus("fit", "--config", config, "--model.backbone.checkpoint=base")[0] == 0
    (run,) = (tmp_path / "runs" / "locus").iterdir()
    assert locus("export", run, "merged", "--dtype", "float32")[0] == 0
    said = []
    for model in (run, run / "checkpoints" / "last.ckpt", run / "model", "merged"):
        status, _, err = locus("eval", model, "--suite", "smallstar", "--limit", "2", "--out", f"out{len(said)}", "--max-new-tokens", "4")
        assert status == 0, err
        (answers,) = (tmp_path / f"out{len(said)}" / "smallstar").glob("*/answers.jsonl")
        said.append([json.loads(line)["text"] for line in answers.read_text().splitlines()[1:]])
    assert said[0] == said[1] == said[2] == said[3]


def test_the_papers_benchmarks_that_are_there_stand_beside_its_figures(locus, tmp_path):
    assert locus("smallstar", "root/vstar_bench", "--number", "2")[0] == 0
    status, out, err = locus("eval", "toy:llava", "--suite", "paper", "--data", "root", "--out", "out", "--max-new-tokens", "4")
    assert status == 0, err
    assert "87.4" in out
    assert "hr_bench_8k is not there; DreamMr/HR-Bench" in out.replace("\n", " ")
    assert "lmms-eval's task mmstar" in out
    assert set(json.loads((tmp_path / "out" / "paper" / "paper.json").read_text())) == {"V*Bench"}
    assert locus("eval", "toy:llava", "--suite", "paper", "--data", "out")[0] == 2


@pytest.mark.parametrize("what", ["attention", "context", "grounding"])
def test_analyses_write_figures(locus, tmp_path, what):
    status, out, err = locus("analyze", what, "toy:llava", "--against", "toy:internvl", "--number", "3", "--out", "look")
    assert status == 0, err
    report = json.loads((tmp_path / "look" / f"{what}.json").read_text())
    assert report["questions"] == 6
    assert set(report["models"]) == {"toy:llava", "toy:internvl"}
    assert all(path.stat().st_size > 5000 for path in (tmp_path / "look").glob("*.png"))
    assert report["gain"]["low"] <= report["gain"]["mean"] <= report["gain"]["high"]
    assert "paired by question" in out
    if what == "attention":
        found = report["models"]["toy:llava"]
        assert len(found["aib_by_layer"]) == 3
        assert 0 < found["aib"] < 1
        assert len(found["by_question"]) == 6


def test_the_question_for_a_box_can_be_said_otherwise_but_names_the_object(locus, tmp_path):
    words = "Where is the {expression}?"
    assert locus("analyze", "grounding", "toy:llava", "--number", "1", "--ask", words, "--out", "look")[0] == 0
    status, _, err = locus("analyze", "grounding", "toy:llava", "--ask", "Where?")
    assert status == 2
    assert "{expression}" in err


def test_attention_in_box_is_logged_beside_cue_iou(locus, tmp_path):
    callback = '[{"class_path": "locus_lightning.callbacks.downstream.DownstreamAccuracy", "init_args": {"number": 2, "attention": 3}}]'
    status, _, err = locus(
        "fit", "--config", ROOT / "tests" / "configs" / "scenes_llava.yaml", "--trainer.max_steps=1", f"--trainer.callbacks={callback}"
    )
    assert status == 0, err
    (summary,) = tmp_path.rglob("summary.json")
    written = json.loads(summary.read_text())
    for figures in (written["before"], written["after"]):
        assert 0 < figures["eval/smallstar_aib"] < 1
        assert "iou" in figures


@pytest.mark.skipif(PHOTOS is None, reason="no folder of photos beside the checkout")
def test_questions_about_real_photos(locus, tmp_path):
    """V*Bench's format, made from COCO's boxes."""
    assert PHOTOS is not None
    content = json.loads(next((PHOTOS / "annotations").glob("instances_val*.json")).read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    pictures = {image["id"]: image for image in content["images"]}
    root, rows = tmp_path / "photos", []
    root.mkdir()
    for note in content["annotations"]:
        image = pictures[note["image_id"]]
        if len(rows) == 8 or note["iscrowd"] or note["area"] > 0.05 * image["width"] * image["height"]:
            continue
        i, wrong = len(rows), next(name for name in names.values() if name != names[note["category_id"]])
        source = next(p for p in PHOTOS.rglob(image["file_name"]))
        (root / f"{i}.jpg").symlink_to(Path(source).resolve())
        (root / f"{i}.json").write_text(json.dumps({"target_object": [names[note["category_id"]]], "bbox": [note["bbox"]]}))
        text = f"Which of these is in the picture?\n(A) {names[note['category_id']]}\n(B) {wrong}\nAnswer with the option's letter."
        rows.append({"image": f"{i}.jpg", "text": text, "category": "direct_attributes", "question_id": i, "label": "A"})
    (root / "test_questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(rows) == 8
    assert locus("eval", "toy:llava_onevision", "--suite", "vstar", "--data", "photos", "--out", "out", "--max-new-tokens", "4")[0] == 0
    status, _, err = locus("analyze", "attention", "toy:llava_onevision", "--against", "toy:qwen3_vl", "--suite", "photos", "--out", "look")
    assert status == 0, err
    report = json.loads((tmp_path / "look" / "attention.json").read_text())
    assert report["questions"] == 8


@pytest.mark.slow
def test_processes_of_torchrun_share_the_questions_out(locus, tmp_path):
    """Two processes give what one gives, with a broken picture in one's share, also after a stop."""
    assert locus("smallstar", "data", "--number", "5")[0] == 0
    questions = [json.loads(line) for line in (tmp_path / "data/test_questions.jsonl").read_text().splitlines()]
    (tmp_path / "data" / questions[3]["image"]).write_bytes(b"not a picture")
    asked = ["eval", "locus-tiny", "--suite", "vstar", "--data", "data", "--batch-size", "2"]
    assert locus(*asked, "--out", "one")[0] == 0
    two = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "locus_lightning",
        *asked,
        "--out",
        "two",
    ]
    folder = tmp_path / "two/vstar/locus-tiny"
    for again in range(2):
        out = subprocess.run(two, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
        assert out.returncode == 0, out.stdout + out.stderr
        assert out.stdout.count("9 questions, greedy") == 1, out.stdout
        results = [json.loads((tmp_path / name / "vstar/locus-tiny/result.json").read_text()) for name in ("one", "two")]
        assert results[0] == results[1], again
        assert not list(folder.glob("answers.part-*"))
        lines = (folder / "answers.jsonl").read_text().splitlines()
        assert len(lines) == 1 + 9
        # as if it had been stopped: answers of the second process lie in its own file, some are missing
        (folder / "answers.jsonl").write_text("\n".join(lines[:4]) + "\n")
        (folder / "answers.part-1.jsonl").write_text("\n".join([lines[0], *lines[6:8]]) + "\n")
