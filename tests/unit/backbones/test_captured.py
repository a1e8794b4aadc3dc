"""A decoding step that was recorded once and is replayed gives what running it anew gives.

On a CPU, a trace of the step's tensor operations stands in for a CUDA graph: like one, it repeats the same operations on the same memory,
and whatever Python would decide anew is frozen in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from locus_lightning.backbones.adapters import LoRA
from locus_lightning.rollout import capture, decoding
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.hf import HFRollout
from tests.conftest import contents, make_sample
from tests.unit.backbones.rows import rollouts

LONG = SamplingParams(max_new_tokens=24)


@pytest.fixture
def recorded(monkeypatch) -> list[torch.fx.GraphModule]:
    """Decode as on CUDA, with traces in place of graphs; small sizes, so that short completions meet every case."""
    traces: list[torch.fx.GraphModule] = []

    def record(self: capture.Capture, step: Callable[[], None]) -> Callable[[], None]:
        state = torch.get_rng_state()
        before = [(t, t.clone()) for t in _tensors_of(step)]

        def traced(_: torch.Tensor) -> torch.Tensor:
            step()
            return _

        try:
            graph = make_fx(traced)(torch.zeros(1))
        finally:
            for tensor, value in before:  # tracing runs the step, recording a CUDA graph does not
                tensor.copy_(value)
            torch.set_rng_state(state)
        traces.append(graph)
        return lambda: graph(torch.zeros(1))

    def decode(self: HFRollout, backbone, prompts, n, sampling):
        return decoding.Decoding(backbone, prompts, n, sampling, capture=self.capture is not False).run()

    monkeypatch.setattr(capture.Capture, "_record", record)
    monkeypatch.setattr(capture.Capture, "_warm_up", lambda self, step: (setattr(self, "_warm", True), step())[1])
    monkeypatch.setattr(capture, "_warned", False)
    monkeypatch.setattr(decoding, "_LOOK_EVERY", 3)
    monkeypatch.setattr(decoding, "_CAPTURED_ROOM", 7)
    monkeypatch.setattr(HFRollout, "_decode", decode)
    return traces


def _tensors_of(step: Callable[[], None]) -> list[torch.Tensor]:
    """What a step writes: the decoding's own tensors and its cache's."""
    under_way: decoding.Decoding = step.__self__  # type: ignore[attr-defined]
    cache = under_way.cache
    own = [under_way.ids_RT, under_way.logps_RT, under_way.count_1, under_way.position_R1, under_way.token_R1]
    return [*own, cache.place_1, cache.hidden_B11K, *(x for layer in cache.own for x in (layer.keys, layer.values))]


def both(backbone, samples, sampling=LONG, n=4, **settings):
    """The generations of captured and of uncaptured decoding, from the same random numbers."""
    prompts, results = backbone.encode(contents(backbone, samples)), []
    for wanted in (True, False):
        torch.manual_seed(3)
        groups = HFRollout(capture=wanted, **settings).generate(backbone, prompts, n, sampling)
        results.append([made for group in groups for made in group])
    return results


def assert_equal(captured, plain, atol=1e-9):
    for one, other in zip(captured, plain, strict=True):
        assert torch.equal(one.ids_T, other.ids_T)
        assert torch.allclose(one.logps_T, other.logps_T, atol=atol)
        assert one.truncated == other.truncated


@pytest.fixture
def many_ends(monkeypatch) -> Callable[[object], None]:
    """Let one token of ten end a completion, so that rows leave at many times."""
    return lambda backbone: monkeypatch.setattr(type(backbone), "eos_ids", tuple(range(0, 1000, 10)))


def _erratic(logits_RV, sampling):
    """A token that depends on the row's logits alone, and changes with each of them: rows end at many times without random numbers."""
    token_R = (logits_RV * 1000).sin().nan_to_num(-2.0).argmax(dim=-1)
    return token_R, logits_RV.log_softmax(-1).gather(-1, token_R[:, None])[:, 0]


@pytest.fixture
def captured_family(packed_family):
    """Experts in float64 are chosen one after the other on the CPU, which no graph can hold: such a model decodes uncaptured, with a warning."""
    if packed_family == "qwen3_vl_moe":
        pytest.skip("its float64 experts cannot be captured; a test below says what happens then")
    return packed_family


def test_experts_that_cannot_be_captured_are_decoded_all_the_same(make_backbone, samples, recorded, caplog):
    backbone = make_backbone("qwen3_vl_moe", dtype="float64")
    prompts, groups, completions = rollouts(backbone, samples, n=2, sampling=LONG)
    assert not recorded
    assert "Decoding goes on uncaptured" in caplog.text
    logps, _ = backbone.logps(prompts, completions)
    for b, group in enumerate(groups):
        for g, one in enumerate(group):
            torch.testing.assert_close(logps[b, g, : len(one.logps_T)], one.logps_T.to(logps), atol=1e-6, rtol=0)


def test_captured_steps_give_the_tokens_of_uncaptured_ones(make_backbone, captured_family, samples, recorded, many_ends, monkeypatch):
    """No random numbers, which would differ by which rows are present: ragged endings through all sizes, and room that grows."""
    backbone = make_backbone(captured_family, dtype="float64")
    many_ends(backbone)
    monkeypatch.setattr(decoding, "sample_token", _erratic)
    greedy = replace(LONG, temperature=0.0)
    captured, plain = both(backbone, [*samples, *(make_sample(90 + i, 70, seed=7 + i) for i in range(5))], greedy, n=1)
    assert len({len(made.ids_T) for made in plain}) > 1
    assert len(recorded) > 1, "no size was left, or no step was captured"
    assert_equal(captured, plain)


def test_captured_sampling_draws_the_same_random_numbers(make_backbone, samples, recorded):
    """While all rows are present, both ways draw the same numbers; at another temperature, with adapters that act."""
    backbone = make_backbone("qwen2_5_vl", dtype="float64", lora=LoRA(rank=4))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    sampling = replace(LONG, temperature=0.7, min_new_tokens=24)
    for merge in (True, False):
        assert_equal(*both(backbone, samples, sampling, merge_adapters=merge))
    assert len(recorded) > 2
    sampling = replace(sampling, top_p=0.8, top_k=20)
    assert_equal(*both(backbone, samples, sampling))


@pytest.mark.parametrize("dequantize", [False, True])
def test_the_captured_form_of_decoding_with_4_bit_weights(make_backbone, samples, recorded, many_ends, monkeypatch, dequantize):
    """Copies are traced. bitsandbytes' own tensors cannot be, so that the step itself stands in for the graph: sizes, room and looks are
    those of a capture."""
    if not dequantize:
        monkeypatch.setattr(capture.Capture, "_record", lambda self, step: recorded.append(step) or step)
    monkeypatch.setattr(decoding, "sample_token", _erratic)
    backbone = make_backbone("qwen2_5_vl", lora=LoRA(rank=4), quantize="nf4")
    many_ends(backbone)
    captured, plain = both(backbone, samples, dequantize=dequantize)
    assert len(recorded) > 1
    assert all(isinstance(graph, torch.fx.GraphModule) for graph in recorded) is dequantize
    for one, other in zip(captured, plain, strict=True):
        assert torch.allclose(one.logps_T[:1], other.logps_T[:1], atol=1e-4)
    assert sum(torch.equal(one.ids_T, other.ids_T) for one, other in zip(captured, plain, strict=True)) >= 0.7 * len(plain)


def test_captured_log_probabilities_are_those_of_training(make_backbone, captured_family, samples, recorded, many_ends):
    backbone = make_backbone(captured_family, dtype="float64")
    many_ends(backbone)
    prompts, groups, completions = rollouts(backbone, samples, n=4, sampling=LONG)
    assert recorded
    logps, _ = backbone.logps(prompts, completions)
    for b, group in enumerate(groups):
        for g, made in enumerate(group):
            assert torch.allclose(logps[b, g, : len(made.ids_T)], made.logps_T, atol=1e-9)


def test_random_numbers_of_captured_steps_come_from_the_generator_that_a_checkpoint_holds(make_backbone, samples, recorded):
    backbone = make_backbone("llava", dtype="float64")
    prompts = backbone.encode(contents(backbone, samples))
    torch.manual_seed(5)
    HFRollout().generate(backbone, prompts, 2, LONG)
    state = torch.get_rng_state()
    first = HFRollout().generate(backbone, prompts, 2, LONG)
    torch.set_rng_state(state)
    again = HFRollout().generate(backbone, prompts, 2, LONG)
    assert_equal([m for g in first for m in g], [m for g in again for m in g])


def test_a_model_whose_prompts_are_repeated_is_decoded_uncaptured(make_backbone, samples, recorded):
    backbone = make_backbone("gemma3", dtype="float64")
    assert_equal(*both(backbone, samples))
    assert not recorded


def test_a_step_that_cannot_be_captured_is_run_as_it_is_and_said_once(make_backbone, samples, recorded, caplog):
    """A step that looks at a value: a trace cannot, and neither can a CUDA graph."""
    backbone = make_backbone("llava", dtype="float64")
    original = backbone.next_token_logits

    def looks(hidden, temperature=1.0, *, reference=False):
        assert float(hidden.sum()) != 0.123  # waits for the device
        return original(hidden, temperature)

    backbone.next_token_logits = looks
    with caplog.at_level(logging.WARNING):
        captured, plain = both(backbone, samples)
        both(backbone, samples)
    assert_equal(captured, plain)
    messages = [record.message for record in caplog.records if "cannot be captured" in record.message]
    assert len(messages) == 1
    assert "assert float(hidden.sum())" in messages[0]


def test_a_capture_that_fails_once_is_tried_again(make_backbone, samples, recorded, monkeypatch, caplog):
    """Kernels that are compiled at their first run cannot be captured then, and can afterwards."""
    backbone = make_backbone("llava", dtype="float64")
    record, calls = capture.Capture._record, []

    def fails_first(self, step):
        calls.append(None)
        if len(calls) == 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return record(self, step)

    monkeypatch.setattr(capture.Capture, "_record", fails_first)
    with caplog.at_level(logging.WARNING):
        assert_equal(*both(backbone, samples))
    assert recorded
    assert "cannot be captured" not in caplog.text


@pytest.mark.parametrize("masked", [False, True])
def test_memory_that_runs_out_in_a_capture_halves_the_prompts(make_backbone, samples, recorded, monkeypatch, caplog, masked):
    """The end of a failed capture may raise an error of its own."""
    backbone, record, rows = make_backbone("llava", dtype="float64"), capture.Capture._record, []

    def full(self, step):
        rows.append(step.__self__.rows)
        if rows[-1] <= 4:
            return record(self, step)
        try:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        finally:
            if masked:
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(capture.Capture, "_record", full)
    with caplog.at_level(logging.WARNING):
        groups = HFRollout().generate(backbone, backbone.encode(contents(backbone, [*samples, make_sample(seed=9)])), 2, LONG)
    assert [len(group) for group in groups] == [2, 2, 2, 2]
    assert set(rows) == {8, 4}
    assert "memory is full: from here on 2 prompts" in caplog.text
    assert "cannot be captured" not in caplog.text
    assert recorded


def test_a_rollout_that_does_not_fit_goes_on_with_half_the_prompts(make_backbone, samples, monkeypatch, caplog):
    backbone = make_backbone("llava", dtype="float64")
    four = [*samples, make_sample(seed=9)]
    prompts, sizes = backbone.encode(contents(backbone, four)), []
    whole = HFRollout._decode

    def decode(self, backbone, some, n, sampling):
        sizes.append(len(some))
        if len(some) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return whole(self, backbone, some, n, sampling)

    monkeypatch.setattr(HFRollout, "_decode", decode)
    engine = HFRollout()
    with caplog.at_level(logging.WARNING):
        groups = engine.generate(backbone, prompts, 2, LONG)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert [len(group) for group in groups] == [2, 2, 2, 2]
    assert sum("memory is full" in record.message for record in caplog.records) == 2
    sizes.clear()
    engine.generate(backbone, prompts, 2, LONG)
    assert sizes == [1, 1, 1, 1], "the number that fitted is remembered"
    monkeypatch.setattr(HFRollout, "_decode", lambda *args: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("full")))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        engine.generate(backbone, prompts, 2, LONG)
