"""Training against vLLM itself: equal prompts and log-probabilities, adapters that are applied, servers that die or are others."""

from __future__ import annotations

import re
import time

import pytest
import torch

from locus_lightning import plugins
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.vllm_rollout import VLLMRollout
from locus_lightning.testing.models import _contents, check_rollout


@pytest.fixture(scope="module")
def backbone(server):
    one = plugins.load("backbones", "Qwen2_5_VLBackbone")(str(server.folder / "toy"), lora=LoRA(8, 8))
    one.load()
    return one


@pytest.fixture
def engine(server, tmp_path):
    one = VLLMRollout(server.url, max_gap=1e-4, adapter_folder=str(tmp_path))
    yield one
    one.close()


def test_it_passes_what_every_engine_passes(engine, backbone):
    check_rollout(engine, backbone)


def test_log_probabilities_are_those_of_the_trainer(engine, backbone):
    """Two images a prompt, ragged completions, a temperature, an adapter that does something."""
    prompts, sampling = backbone.encode(_contents()), SamplingParams(24, temperature=0.7)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    engine.sync(backbone)
    groups = engine.generate(backbone, prompts, 8, sampling)
    lengths = {len(one.ids_T) for group in groups for one in group}
    ended = [one for group in groups for one in group if not one.truncated]
    assert len(lengths) > 3
    assert ended
    assert all(int(one.ids_T[-1]) in backbone.eos_ids for one in ended)
    logps, _ = backbone.logps(prompts, [[one.ids_T for one in group] for group in groups], temperature=0.7)
    gaps = torch.cat([(logps[b, g, : len(one.ids_T)] - one.logps_T).abs() for b, row in enumerate(groups) for g, one in enumerate(row)])
    print(f"mean gap {float(gaps.mean()):.2e}, largest {float(gaps.max()):.2e} over {len(gaps)} tokens of {sorted(lengths)}")
    assert float(gaps.max()) < 1e-3


def test_a_changed_adapter_changes_the_tokens(engine, backbone):
    prompts, greedy = backbone.encode(_contents()), SamplingParams(12, temperature=0.0)
    tokens = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in backbone.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3)
        engine.sync(backbone)
        tokens.append([one.ids_T.tolist() for (one,) in engine.generate(backbone, prompts, 1, greedy)])
    print(f"before {tokens[0][0]}\nafter  {tokens[1][0]}")
    assert tokens[0] != tokens[1]
    assert tokens[0] == tokens[2]


def test_a_run(server):
    run = server.fit()
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output[-3000:]
    shown = re.search(
        r"has this model: 4 prompts have equal ids; .* differ by (\S+) nats .* by (\S+) with one that moves them by (\S+)\.", output
    )
    assert shown, output[-3000:]
    print(shown[0])
    assert float(shown[1]) < 1e-4
    assert float(shown[2]) < 1e-4
    assert float(shown[3]) >= 0.15  # three times max_gap


def _first_step(run):
    """Read a run's output until it has saved a step."""
    for line in run.stdout:
        if "proved" in line or "computed: peak" in line:
            return


def test_a_killed_server_is_waited_for_and_the_run_goes_on(server):
    run = server.fit("--trainer.max_steps=60", "--checkpoints.every_n_steps=1")
    _first_step(run)
    time.sleep(3)
    server.kill()
    server.start()
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output[-3000:]
    assert "training waits for the vLLM server" in output, output[-3000:]


def test_a_server_that_stays_away_ends_the_run_with_its_state_saved(server):
    run = server.fit("--trainer.max_steps=100", "--model.rollout.init_args.wait=2")
    _first_step(run)
    time.sleep(3)
    server.kill()
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 2, output[-3000:]
    assert "did not answer for 2 s" in output, output[-3000:]
    server.start()
    again = server.fit("--trainer.max_steps=100", "--ckpt_path", "last")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output[-3000:]
    assert "continuing from" in output, output[-3000:]


def test_a_server_with_another_model_is_refused(server):
    server.kill()
    server.start("other")
    run = server.fit()
    output, _ = run.communicate(timeout=120)
    server.kill()
    server.start()
    assert run.returncode == 2, output[-3000:]
    assert "serves another model" in output, output[-3000:]
