"""The vLLM engine against a stand-in that serves a toy model; plugins/vllm runs it against vLLM itself."""

from __future__ import annotations

import logging
import threading
import time

import pytest
import torch

from locus_lightning import plugins
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.toy import save_toy_checkpoint
from locus_lightning.errors import ConfigError, TrainingError
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.vllm_rollout import VLLMRollout
from locus_lightning.testing.models import _contents, check_rollout
from tests.unit.rollout.stand_in import StandIn

SAMPLING = SamplingParams(8, temperature=0.7)


def model(folder, **settings):
    backbone = plugins.load("backbones", "Qwen2_5_VLBackbone")(str(folder), lora=LoRA(4, 4), **settings)
    backbone.load()
    return backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return save_toy_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def backbone(folder):
    return model(folder)


@pytest.fixture
def served(folder):
    server = StandIn(model(folder))
    yield server
    server.close()


@pytest.fixture
def engine(served, tmp_path):
    return VLLMRollout(served.url, wait=2.0, adapter_folder=str(tmp_path / "adapters"))


@pytest.fixture(autouse=True)
def fresh_adapter(backbone):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.zero_()


def change(backbone, scale=0.5):
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.add_(scale * torch.randn_like(parameter))


def test_it_passes_what_every_engine_passes(engine, backbone):
    check_rollout(engine, backbone)


def test_it_proves_that_it_has_the_model(engine, backbone, caplog):
    before = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    with caplog.at_level(logging.INFO):
        engine.prove(backbone, backbone.encode(_contents()), SAMPLING)
    assert "has this model: 3 prompts have equal ids" in caplog.text
    assert all(torch.equal(before[name], parameter) for name, parameter in backbone.named_parameters())


def test_another_model_is_refused(folder, backbone, tmp_path):
    torch.manual_seed(1)
    other = StandIn(model(save_toy_checkpoint("qwen2_5_vl", tmp_path / "other")))
    with pytest.raises(ConfigError, match="serves another model"):
        VLLMRollout(other.url, max_gap=0.01, adapter_folder=str(tmp_path / "a")).prove(backbone, backbone.encode(_contents()), SAMPLING)
    other.close()


def test_adapters_that_are_not_applied_are_refused(engine, served, backbone):
    served.ignore_adapters = True
    with pytest.raises(ConfigError, match="does not apply adapters"):
        engine.prove(backbone, backbone.encode(_contents()), SAMPLING)
    assert not served.adapters, "the adapter of the proof was left on the server"


def test_log_probabilities_before_the_temperature_are_refused(engine, served, backbone):
    served.raw, engine.max_gap = True, 0.01
    with pytest.raises(ConfigError, match="before the temperature"):
        engine.prove(backbone, backbone.encode(_contents()), SAMPLING)


def test_another_image_budget_is_refused(folder, backbone, tmp_path):
    other = StandIn(model(folder, max_pixels=56 * 56))
    with pytest.raises(ConfigError, match=r"reads a prompt as \d+ tokens \(\d+ of images\) where the trainer has \d+"):
        VLLMRollout(other.url, adapter_folder=str(tmp_path / "a")).prove(backbone, backbone.encode(_contents()), SAMPLING)
    other.close()


def test_an_adapter_is_handed_over_when_it_has_changed(engine, served, backbone):
    prompts, greedy = backbone.encode(_contents()), SamplingParams(8, temperature=0.0)
    engine.sync(backbone)
    (first,) = served.adapters
    engine.sync(backbone)
    assert list(served.adapters) == [first], "an adapter that has not changed was loaded again"
    before = engine.generate(backbone, prompts, 1, greedy)
    change(backbone)
    engine.sync(backbone)
    (second,) = served.adapters
    assert second != first
    assert [path.name for path in engine.folder.iterdir()] == [second]
    after = engine.generate(backbone, prompts, 1, greedy)
    assert any(not torch.equal(a[0].ids_T, b[0].ids_T) for a, b in zip(before, after, strict=True))
    logps, _ = backbone.logps(prompts, [[one.ids_T for one in group] for group in after])
    for b, group in enumerate(after):
        torch.testing.assert_close(group[0].logps_T, logps[b, 0, : len(group[0].ids_T)], atol=1e-4, rtol=0)
    engine.close()
    assert not served.adapters
    assert not list(engine.folder.iterdir())


def test_a_change_of_a_single_bit_is_noticed(engine, served, backbone):
    engine.sync(backbone)
    (first,) = served.adapters
    weight = next(parameter for name, parameter in backbone.named_parameters() if "lora_A" in name).detach()
    weight.view(torch.int32)[0, 0] ^= 1
    engine.sync(backbone)
    assert list(served.adapters) != [first]


def test_equal_generator_states_draw_equal_completions(engine, backbone):
    prompts, drawn = backbone.encode(_contents()), []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append([one.ids_T.tolist() for group in engine.generate(backbone, prompts, 2, SAMPLING) for one in group])
    assert drawn[0] == drawn[1]


def test_a_server_that_was_lost_is_waited_for(engine, served, backbone, caplog):
    engine.sync(backbone)
    served.refuse = 5  # the three prompts, and two looks whether it is back
    groups = engine.generate(backbone, backbone.encode(_contents()), 2, SAMPLING)
    assert [len(group) for group in groups] == [2, 2, 2]
    assert "was lost in a rollout" in caplog.text
    assert "training waits for the vLLM server" in caplog.text


def test_a_server_that_was_started_again_gets_the_adapter_again(engine, served, backbone):
    change(backbone)
    engine.sync(backbone)
    served.adapters.clear()
    prompts = backbone.encode(_contents())
    (group, _, _) = engine.generate(backbone, prompts, 1, SamplingParams(8, temperature=0.0))
    logps, _ = backbone.logps(prompts[:1], [[group[0].ids_T]])
    torch.testing.assert_close(group[0].logps_T, logps[0, 0], atol=1e-4, rtol=0)


def test_a_server_that_is_lost_while_it_loads_an_adapter_is_asked_again(engine, served, backbone, caplog):
    answer, lost = served.answer, []

    def once(path, body, authorization):
        if "load_lora" in path and not lost:
            lost.append(path)
            raise ConnectionError  # the connection is closed without an answer
        return answer(path, body, authorization)

    served.answer = once
    engine.sync(backbone)
    assert lost
    assert len(served.adapters) == 1
    assert "was lost while it loaded an adapter" in caplog.text


def test_a_server_that_stays_away_ends_the_wait(engine, served, backbone):
    engine.sync(backbone)
    served.refuse, engine.wait, started = -1, 0.5, time.monotonic()
    with pytest.raises(TrainingError, match=r"did not answer for 0 s|did not answer for 1 s.*rollout.wait"):
        engine.generate(backbone, backbone.encode(_contents()), 1, SAMPLING)
    assert time.monotonic() - started < 20


def test_a_server_that_dies_of_the_same_prompts_is_not_asked_for_ever(engine, served, backbone, monkeypatch):
    engine.sync(backbone)

    def dies(path, body, authorization, answer=served.answer):
        return answer(path, body, authorization) if "generate" not in path else (404, {"error": {"message": "`x` does not exist"}})

    monkeypatch.setattr(served, "answer", dies)
    with pytest.raises(TrainingError, match="was lost 4 times while it completed the same prompts"):
        engine.generate(backbone, backbone.encode(_contents()), 1, SAMPLING)


def test_completions_that_a_dying_server_gave_up_are_not_taken(engine, served, backbone):
    engine.sync(backbone)
    generate, gave_up = served._generate, []

    def aborted(body):
        answer = generate(body)
        if not gave_up:
            gave_up.append(1)
            answer["choices"][0] |= {"finish_reason": "abort", "token_ids": answer["choices"][0]["token_ids"][:1]}
        return answer

    served._generate = aborted
    groups = engine.generate(backbone, backbone.encode(_contents()), 2, SamplingParams(8, min_new_tokens=8))
    assert gave_up
    assert {len(one.ids_T) for group in groups for one in group} == {8}


def test_a_context_that_cuts_completions_off_is_refused(engine, served, backbone):
    engine.sync(backbone)
    generate = served._generate
    served._generate = lambda body: generate({**body, "sampling_params": {**body["sampling_params"], "max_tokens": 3, "min_tokens": 3}})
    with pytest.raises(ConfigError, match=r"cut a completion off after 3 of 8 tokens.*--max-model-len"):
        engine.generate(backbone, backbone.encode(_contents()), 1, SAMPLING)


def test_weights_that_train_beside_the_adapter_are_refused(engine, backbone):
    norm = next(parameter for name, parameter in backbone.named_parameters() if "norm" in name)
    norm.requires_grad_(True)
    try:
        with pytest.raises(ConfigError, match="norm.* trains too, which the server never gets"):
            engine.sync(backbone)
    finally:
        norm.requires_grad_(False)


def test_an_engine_that_dies_while_it_loads_an_adapter_is_waited_for(engine, served, backbone, caplog):
    answer, died = served.answer, []

    def dying(path, body, authorization):
        if "load_lora" in path and not died:
            died.append(1)
            served.refuse = 1  # the look at its health
            return 500, {"error": {"message": "EngineCore encountered an issue"}}
        return answer(path, body, authorization)

    served.answer = dying
    engine.sync(backbone)
    assert died
    assert len(served.adapters) == 1


def test_a_proof_that_shows_nothing_is_none(engine, backbone, monkeypatch):
    """An adapter whose noise changes nothing could as well not be applied."""
    from contextlib import nullcontext

    monkeypatch.setattr(type(backbone), "noisy_adapters", lambda self, scale: nullcontext())
    with pytest.raises(ConfigError, match="too little to tell whether"):
        engine.prove(backbone, backbone.encode(_contents()), SAMPLING)


def test_a_stop_ends_the_requests(engine, served, backbone, monkeypatch):
    engine.sync(backbone)
    hang = threading.Event()
    generate = served._generate
    monkeypatch.setattr(served, "_generate", lambda body: hang.wait(30) and generate(body))
    engine.at_once, prompts = 2, backbone.encode(_contents()) * 20  # most of them wait for a thread
    before = served.log.count("/inference/v1/generate")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", stop)
    drop = engine.server.drop_requests
    monkeypatch.setattr(engine.server, "drop_requests", lambda: (drop(), time.sleep(0.5)))  # time for freed threads to begin others
    with pytest.raises(KeyboardInterrupt):
        engine.generate(backbone, prompts, 1, SAMPLING)
    deadline = time.monotonic() + 10
    while engine.server._open and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not engine.server._open, "requests go on after a stop"
    assert served.log.count("/inference/v1/generate") - before <= 2, "requests were begun after the stop"
    hang.set()


def test_a_key_is_asked_for_and_sent(engine, served, backbone, monkeypatch):
    served.key = "secret"
    with pytest.raises(ConfigError, match="set VLLM_API_KEY"):
        engine.prove(backbone, backbone.encode(_contents()), SAMPLING)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    engine.prove(backbone, backbone.encode(_contents()), SAMPLING)


def test_a_server_without_token_ids_says_how_to_start_it(engine, served, backbone):
    served.scale_out = False
    with pytest.raises(ConfigError, match="--enable-scale-out"):
        engine.prove(backbone, backbone.encode(_contents()), SAMPLING)


def test_a_folder_that_the_server_does_not_see_is_named(engine, served, backbone):
    served.sees_folders = False
    with pytest.raises(TrainingError, match="rollout.adapter_folder is a folder that both machines see"):
        engine.sync(backbone)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora": None}, "backbone.lora is null"),
        ({"lora": LoRA(4, 4, dora=True)}, "dora"),
        ({"lora": LoRA(4, 4), "train_vision": True}, "train_vision"),
    ],
)
def test_what_vllm_does_not_serve_is_refused_before_weights_load(folder, settings, words):
    backbone = plugins.load("backbones", "Qwen2_5_VLBackbone")(str(folder), **settings)
    with pytest.raises(ConfigError, match=words):
        VLLMRollout().check(backbone)
    assert not backbone.loaded


@pytest.mark.parametrize("settings", [{"url": "127.0.0.1:8000"}, {"max_gap": 0.0}, {"at_once": 0}, {"timeout": 0.0}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError, match="rollout"):
        VLLMRollout(**settings)
