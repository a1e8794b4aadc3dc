"""Rewards, objectives and the like in a file of the user's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

SOURCE = """
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.rewards.base import Reward


class VowelReward(Reward):
    def __init__(self, share: float = 1.0, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.share = share

    def score(self, completion, sample):
        return self.share * sum(letter in "aeiou" for letter in completion.text) / (1 + len(completion.text))


class Halved(GRPO):
    def advantages(self, rewards_BG):
        return super().advantages(rewards_BG) / 2
"""


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setenv("LOCUS_CLASS_FOLDERS", "")
    path, known = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - known:
        if name.startswith("my_"):
            del sys.modules[name]


def test_a_reward_and_an_objective_in_files_train_a_run(locus, tmp_path):
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    config = yaml.safe_load((CONFIGS / "scenes_llava.yaml").read_text())
    config["model"]["init_args"]["rewards"] = [{"class_path": "my_rewards.py:VowelReward", "init_args": {"share": 0.5}}]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    status, _, err = locus("fit", "--config", "run.yaml", "--model.objective=my_rewards.py:Halved", "--model.objective.kl_coef=0.0",
                           "--trainer.limit_val_batches=0")  # fmt: skip
    assert status == 0, err
    saved = yaml.safe_load((tmp_path / "runs" / "locus" / "version_0" / "config.yaml").read_text())
    assert saved["model"]["init_args"]["rewards"][0]["class_path"] == "my_rewards.VowelReward"
    assert saved["model"]["init_args"]["objective"]["class_path"] == "my_rewards.Halved"


@pytest.mark.parametrize(
    ("named", "message"),
    [("my_gone.py:A", "no file my_gone.py"), ("my_broken.py:A", "cannot be imported: ZeroDivisionError"),
     ("my_empty.py:A", "has no class A; it has B"), ("json.py:A", "another module is called 'json'"), ("my-file.py:A", "rename the file")],
)  # fmt: skip
def test_a_file_that_cannot_serve_is_refused_in_a_sentence(locus, tmp_path, named, message):
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    (tmp_path / "my_empty.py").write_text("class B: ...\n")
    (tmp_path / "json.py").write_text("class A: ...\n")
    (tmp_path / "my-file.py").write_text("class A: ...\n")
    status, _, err = locus("fit", "--config", CONFIGS / "scenes_llava.yaml", "--model.rewards", json.dumps([{"class_path": named}]))
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_processes_for_other_ranks_find_the_file(tmp_path):
    """Their arguments have been written out by the process that started them."""
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    (tmp_path / "json.py").write_text("raise RuntimeError('a file of the user stands before a library')\n")
    code = (
        "import os, subprocess, sys; from locus_lightning.cli.names import prepare\n"
        f"arguments = prepare(['fit', '--model.objective=' + {str(tmp_path / 'my_rewards.py')!r} + ':Halved'])\n"
        "assert arguments[1] == '--model.objective=my_rewards.Halved', arguments\n"
        "child = 'import sys, json; from locus_lightning.cli.names import prepare; prepare(sys.argv[1:]); import my_rewards'\n"
        "raise SystemExit(subprocess.run([sys.executable, '-c', child, *arguments]).returncode)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
