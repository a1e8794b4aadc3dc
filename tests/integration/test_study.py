"""`locus study` through the real command line: runs, resumes, tables, figure."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from locus_lightning.study.plan import configuration, read_study
from locus_lightning.study.report import markdown
from tests.integration.conftest import ROOT

STUDY = {
    "title": "a small study",
    "base": str(ROOT / "configs" / "tiny.yaml"),
    "seeds": [0, 1],
    "common": {
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 1,
        "data.batch_size": 4,
        "data.val_batch_size": 2,
        "model.init_args.micro_batch_size": 4,
        "model.init_args.group_size": 2,
        "model.init_args.sampling.max_new_tokens": 4,
    },
    "evaluate": {"suite": "smallstar", "number": 2, "batch-size": 4, "max-new-tokens": 4},
    "arms": {
        "rl": {"label": "crops", "paper": {"V*": 87.4}},
        "random": {
            "change": {
                "data.source.init_args.cue_sampler": {"class_path": "RandomCropCues", "init_args": {"mix": {"large": 1}, "min_side": 8}}
            }
        },
    },
    "groups": {"cue source": ["base", "random", "rl"]},
    "paper_base": {"V*": 79.6},
}


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


@pytest.mark.slow
def test_a_study_runs_once_and_sums_up(study, locus, tmp_path):
    status, out, err = locus("study", str(study), "--out", "o", "--workers", "2", "--only", "rl")
    assert status == 0, err + "".join(p.read_text() for p in tmp_path.glob("o/*/log.txt"))
    assert "2 runs, 0 done already" in out
    results = json.loads(Path("o/results.json").read_text())
    assert results["arms"]["rl"]["seeds"] == [0, 1]
    arm = results["arms"]["rl"]
    assert len(arm["after"]["SmallStar"]) == 2
    assert len(arm["before"]["SmallStar"]) == 1, "one model before training"
    gain, low, high = arm["gain"]["SmallStar"]
    assert gain == pytest.approx(sum(arm["after"]["SmallStar"]) / 2 - arm["before"]["SmallStar"][0])
    assert low <= gain <= high
    assert Path("o/figure.png").stat().st_size > 10_000
    assert "| crops |" in Path("o/table.md").read_text()
    status, out, _ = locus("study", str(study), "--out", "o", "--only", "rl")
    assert status == 0
    assert "2 done already" in out
    shutil.copytree("o", tmp_path / "elsewhere" / "o")
    status, _, err = locus("study", str(study), "--out", str(tmp_path / "elsewhere" / "o"), "--only", "rl", "--report")
    assert status == 0, err
    assert json.loads((tmp_path / "elsewhere" / "o" / "results.json").read_text()) == results, "wherever the folder lies"
    study.write_text(yaml.safe_dump({**STUDY, "common": {**STUDY["common"], "trainer.max_steps": 2}}))
    status, _, err = locus("study", str(study), "--out", "o")
    assert status == 2
    assert "differs from what the study says now" in err
    study.write_text(yaml.safe_dump({**STUDY, "evaluate": {**STUDY["evaluate"], "number": 3}}))
    status, _, err = locus("study", str(study), "--out", "o")
    assert status == 2
    assert str(Path("o", "eval", "study.yaml")) in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_stops_the_runs_and_begins_no_other(study, locus_process, tmp_path):
    long = {**STUDY, "evaluate": {}, "common": {**STUDY["common"], "trainer.max_steps": 4000, "checkpoints": {"every_n_steps": 1}}}
    study.write_text(yaml.safe_dump(long))
    process = locus_process("study", study, "--out", "o", "--only", "rl", "--workers", "1", start_new_session=True)
    deadline = time.time() + 400  # a busy machine takes minutes to start
    while not (tmp_path / "o/rl-0/checkpoints/last.ckpt").exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130, out
    assert "the same command goes on" in out
    assert not (tmp_path / "o/rl-1/config.yaml").exists(), "the next run was not begun"
    assert "stopped at step" in (tmp_path / "o/rl-0/log.txt").read_text()


@pytest.mark.slow
def test_what_cannot_be_evaluated_is_said_before_anything_is_trained(study, locus):
    study.write_text(yaml.safe_dump({**STUDY, "evaluate": {"suite": "vstar", "data": "nowhere"}}))
    status, _, err = locus("study", str(study), "--out", "o", "--only", "rl")
    assert status == 2
    assert "nowhere holds no test_questions.jsonl" in err
    assert not list(Path("o").glob("*/checkpoints"))


def test_arms_differ_from_the_base_in_what_they_name(study, tmp_path):
    read = read_study(study)
    base = yaml.safe_load(read.base.read_text())
    made = configuration(read, next(arm for arm in read.arms if arm.name == "random"), 7, tmp_path)
    assert made["data"]["source"]["init_args"]["cue_sampler"]["class_path"] == "RandomCropCues"
    assert made["seed_everything"] == made["data"]["seed"] == 7
    assert made["data"]["source"]["init_args"]["image_size"] == base["data"]["source"]["init_args"]["image_size"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "nowhere.yaml"}, "existing base"),
        ({"groups": {"x": ["nobody"]}}, "unknown arms"),
        ({"arms": None}, "is not a study"),
        ({"arms": {"rl": {"chnage": {}}}}, "is not a study"),
        ({"evaluate": {"suite": "nothing"}}, "evaluate.suite is one of vstar"),
        ({"evaluate": {"suite": "vstar", "folder": "x"}}, "evaluate knows no folder"),
        ({"arms": {"rl": {"change": {"model.nothing.here": 1}}}, "groups": {}}, "has no nothing"),
    ],
)
def test_what_is_no_study_is_a_sentence(study, locus, change, message):
    study.write_text(yaml.safe_dump({**STUDY, **change}))
    status, _, err = locus("study", str(study), "--out", "o")
    assert status == 2
    assert message in err


def test_tables_hold_ours_beside_the_papers():
    figures, gain = {"proxy mIoU": [40.0, 44.0]}, {"proxy mIoU": [22.0, 20.0, 24.5]}
    results = {
        "title": "t",
        "benchmark": "VStar",
        "groups": {"g": ["base", "rl"]},
        "paper_base": {"V*": 79.6},
        "arms": {"rl": {"label": "RL", "before": {"proxy mIoU": [20.0, 20.0]}, "after": figures, "gain": gain, "paper": {"V*": 87.4}}},
    }
    text = markdown(results)
    assert "| before training | 20.0 ± 0.0 | 79.6 |" in text
    assert "| RL | 42.0 ± 2.8 +22.0 [+20.0, +24.5] | 87.4 |" in text


@pytest.mark.parametrize(
    ("name", "arms"), [("paper_small", {"rl", "sft", "text", "random", "large", "tiny"}), ("context_rot", {"crops", "questions"})]
)
def test_every_arm_of_a_shipped_study_is_a_configuration_that_parses(locus, tmp_path, name, arms):
    """The base that the second one starts from is no part of the package; locus-tiny stands for it."""
    text = (ROOT / "configs" / "studies" / f"{name}.yaml").read_text().replace("runs/tiny_rot/version_0/model", "locus-tiny")
    study = tmp_path / "study.yaml"
    study.write_text(text.replace("../tiny.yaml", str(ROOT / "configs" / "tiny.yaml")))
    found = read_study(study)
    for arm in found.arms:
        path = tmp_path / f"{arm.name}.yaml"
        path.write_text(yaml.safe_dump(configuration(found, arm, 1, tmp_path), sort_keys=False))
        status, out, err = locus("fit", "--config", path, "--print_config")
        assert status == 0, err
        assert yaml.safe_load(out)["data"]["seed"] == 1
    assert arms <= {arm.name for arm in found.arms}


def test_the_study_of_the_guide_is_one(tmp_path):
    (text,) = re.findall(r"```yaml\n(title:.*?)```", (ROOT / "docs" / "studies.md").read_text(), re.DOTALL)
    path = tmp_path / "own.yaml"
    path.write_text(text.replace("../llava.yaml", str(ROOT / "configs" / "llava.yaml")))
    found = read_study(path)
    assert not found.on_cpu
    assert found.model == yaml.safe_load(found.base.read_text())["checkpoint"]
    rewards = [configuration(found, arm, 0, tmp_path)["model"]["init_args"]["rewards"] for arm in found.arms]
    assert [len(some) for some in rewards] == [2, 1]


def test_a_checkpoint_in_short_form_is_the_model_that_is_trained(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "common": {**STUDY["common"], "checkpoint": "toy:llava"}}))
    read = read_study(path)
    assert read.model == "toy:llava"
    made = configuration(read, read.arms[0], 0, tmp_path)
    assert "checkpoint" not in made
    assert made["model"]["init_args"]["backbone"]["init_args"]["checkpoint"] == "toy:llava"
