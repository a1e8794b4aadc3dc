"""``locus fit`` and ``locus serve`` with the vLLM engine, against a stand-in on loopback."""

from __future__ import annotations

import itertools
import json
import logging
import shlex
import threading
import time

import pytest
import torch

from locus_lightning import plugins
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.toy import save_toy_checkpoint
from tests.integration.conftest import ROOT, small
from tests.unit.rollout.stand_in import StandIn

CONFIG = ROOT / "tests" / "integration" / "vllm.yaml"

VARIED = """
from locus_lightning import Reward

class VariedReward(Reward):
    def score(self, completion, sample):
        return float(completion.generation.ids_T.sum() % 7) / 7
"""


@pytest.fixture
def served(tmp_path):
    (tmp_path / f"{tmp_path.name}.py").write_text(VARIED)  # a toy's answers are no boxes: the other rewards of a group are equal
    torch.manual_seed(0)
    backbone = plugins.load("backbones", "Qwen2_5_VLBackbone")(str(save_toy_checkpoint("qwen2_5_vl", tmp_path / "toy")), lora=LoRA(4, 4))
    backbone.load()
    server = StandIn(backbone)
    server.name = tmp_path.name
    yield server
    server.close()


def options(served, **more):
    rewards = json.dumps([{"class_path": f"{served.name}.py:VariedReward"}])
    settings = {
        "checkpoint": "toy",
        "model.rewards": rewards,
        "model.rollout.init_args.url": served.url,
        "model.rollout.init_args.wait": 1,
        **more,
    }
    return ["--config", CONFIG, *small(**settings)]


def when(condition, then):
    """Do something in a thread once a condition holds."""

    def watch():
        deadline = time.monotonic() + 120
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        then()

    threading.Thread(target=watch, daemon=True).start()


def weights(tmp_path):
    checkpoint = torch.load(tmp_path / "runs/vllm/version_0/checkpoints/last.ckpt", weights_only=True)
    return checkpoint["global_step"], {k: v for k, v in checkpoint["state_dict"].items() if "lora_B" in k}


def test_a_run_on_a_server_proves_it_hands_adapters_over_and_tidies_up(locus, served, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        status, _, err = locus("fit", *options(served, **{"trainer.max_steps": 3}))
    assert status == 0, err[-2000:]
    assert "has this model" in caplog.text, err[-2000:]
    assert not served.adapters, "an adapter was left on the server"
    step, trained = weights(tmp_path)
    assert step == 3
    assert all(bool(value.any()) for value in trained.values())
    loads = [path for path in served.log if path.endswith("load_lora_adapter")]
    assert len(loads) >= 2 * (1 + 3), "the adapter is handed over for every rollout batch"


def test_a_run_whose_server_is_gone_is_saved_and_goes_on(locus, served, tmp_path):
    when(lambda: served.log.count("/v1/load_lora_adapter") > 3, lambda: setattr(served, "refuse", -1))
    status, _, err = locus("fit", *options(served, **{"trainer.max_steps": 50}))
    assert status == 2, err[-2000:]
    assert "did not answer for 1 s" in err, err[-2000:]
    assert "--ckpt_path last" in err, err[-2000:]
    step, _ = weights(tmp_path)
    assert 0 < step < 50
    served.refuse = 0
    served.adapters.clear()
    status, _, err = locus("fit", *options(served, **{"trainer.max_steps": step + 2}), "--ckpt_path", "last")
    assert status == 0, err[-2000:]
    assert weights(tmp_path)[0] == step + 2


@pytest.mark.slow
def test_a_server_that_comes_back_in_time_costs_nothing(locus, served, tmp_path):
    when(lambda: served.log.count("/v1/load_lora_adapter") > 3, lambda: (setattr(served, "refuse", 6), served.adapters.clear()))
    status, _, err = locus("fit", *options(served, **{"trainer.max_steps": 5, "model.rollout.init_args.wait": 60}))
    assert status == 0, err[-2000:]
    assert weights(tmp_path)[0] == 5, err[-2000:]


@pytest.mark.slow
def test_two_processes_share_one_adapter(locus_process, served, tmp_path):
    more = {"trainer.max_steps": 2, "trainer.devices": 2, "trainer.strategy": "ddp", "model.groups_per_step": 4}
    process = locus_process("fit", *map(str, options(served, **more)), "--model.rollout.init_args.wait=60")
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert weights(tmp_path)[0] == 2
    assert out.count("has this model") == 1, out
    assert not served.adapters
    loads = [path for path in served.log if path == "/v1/load_lora_adapter"]
    assert len(loads) == 1 + 3, loads  # the proof; before training and after each step


def test_a_gap_that_opens_during_a_run_stops_it(locus, served, tmp_path):
    when(lambda: served.log.count("/v1/load_lora_adapter") > 3, lambda: setattr(served, "ignore_adapters", True))
    more = {"trainer.max_steps": 50, "model.optimizer.init_args.lr": 0.1}
    status, _, err = locus("fit", *options(served, **more))
    assert status == 2, err[-2000:]
    assert "nats a token from the trainer's, more than rollout.max_gap" in err, err[-2000:]
    assert 0 < weights(tmp_path)[0] < 50
    assert not served.adapters, "a run that fails leaves its adapter on the server"
    assert not list((tmp_path / "runs/vllm_adapters").iterdir())


def test_preflight_measures_completions_that_run_to_the_limit(locus, served, tmp_path):
    more = {"model.sampling.max_new_tokens": 12, "model.rollout.init_args.max_gap": 0.001}
    status, out, err = locus("preflight", *options(served, **more))
    assert status == 0, err[-2000:]
    assert "for an optimiser step" in out


def test_a_cold_start_is_refused_with_a_server(locus, served):
    status, _, err = locus("fit", *options(served), "--cold_start.steps=1")
    assert status == 2
    assert "cold_start changes weights that VLLMRollout never gets" in err


def test_serve_prints_the_line_and_lays_the_checkpoint_out(locus, served, tmp_path):
    status, out, err = locus("serve", *options(served, **{"model.backbone.max_pixels": 5000}), "--", "--enforce-eager")
    assert status == 0, err
    words = shlex.split(out.strip())
    assert words[:4] == ["VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", "vllm", "serve", "runs/served/toy"]
    given = dict(itertools.pairwise(words))
    assert given["--max-lora-rank"] == "8"
    assert json.loads(given["--limit-mm-per-prompt"]) == {"image": 2}
    assert given["--host"] == "127.0.0.1"
    assert given["--dtype"] == "float32"
    assert words[-1] == "--enforce-eager"
    laid_out = plugins.load("backbones", "Qwen2_5_VLBackbone")(str(tmp_path / "runs/served/toy"))
    laid_out.load()
    assert laid_out.processor.image_processor.size["longest_edge"] == 5000
    assert (tmp_path / "runs/served/toy/model.safetensors").is_symlink()
    (tmp_path / "runs/served/toy/stale.safetensors").write_text("of another checkpoint")
    assert locus("serve", *options(served))[0] == 0
    assert not (tmp_path / "runs/served/toy/stale.safetensors").exists()
    (tmp_path / "mine/toy").mkdir(parents=True)
    (tmp_path / "mine/toy/own.txt").write_text("keep me")
    status, _, err = locus("serve", *options(served), "--folder", "mine")
    assert status == 2
    assert "holds files that `locus serve` did not put there" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model.rollout.init_args.url": "http://10.0.0.1:8000"}, "set VLLM_API_KEY"),
        ({"checkpoint": "toy:qwen2_5_vl"}, "locus toy FAMILY FOLDER"),
        ({"model.backbone.lora.rank": 1024}, "rank 512 at most"),
        ({"model.rollout": "HFRollout"}, "needs no server"),
    ],
)
def test_serve_refuses_what_cannot_be_served(locus, served, more, words, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    settings = [f"--{key}={value}" for key, value in more.items()]
    status, _, err = locus("serve", *options(served), *settings)
    assert status == 2, err
    assert words in err.strip().splitlines()[-1], err


def test_start_needs_the_command(locus, served):
    status, _, err = locus("serve", *options(served), "--start", "--vllm", "no-such-vllm serve")
    assert status == 2
    assert "'no-such-vllm', which is no command here" in err
