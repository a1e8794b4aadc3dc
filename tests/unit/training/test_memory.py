"""What a rollout takes, computed: the arithmetic of the estimate is the one that the engine plans with."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from locus_lightning.backbones import loading
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.callbacks.gauge import allocated_peak
from locus_lightning.rollout import decoding
from locus_lightning.rollout.decoding import prefilled
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.training import memory

SIZES = memory.Sizes(
    linears=((64, 128), (128, 64)) * 4, other=10_000, vision=5_000, hidden=64, intermediate=128, layers=4, heads=4, kv_heads=2, head_dim=16,
    vocabulary=500, vision_hidden=32, vision_intermediate=64,
)  # fmt: skip
LOAD = memory.Load(prompt=100, completion=50, group=4, micro_batch=1, decoded=0, batch=8, rank=4)
COPIES = 8 * (64 * 128 + 1.5 * 4 * (64 + 128)) * 2


def on_card(bytes_free: float, **changes) -> dict[str, float]:
    """The estimate of a card that has so many bytes left beside weights, adapters, optimiser and features."""
    load = replace(LOAD, **changes)
    resident = sum(memory.estimate(SIZES, load)[name] for name in ("weights", "adapters", "reference", "optimiser", "features"))
    return memory.estimate(SIZES, replace(load, card=resident + bytes_free))


def needed(prompts: int) -> float:
    """Free bytes with which so many prompts are decoded together, without copies."""
    return prompts * (memory._cache(SIZES, LOAD) + memory._logits(SIZES, LOAD)) / 0.7 + memory._prefill(SIZES, LOAD, LOAD.batch)


def test_copies_are_counted_where_they_are_made():
    with_room, without = on_card(needed(8) + COPIES + 1, copies="auto"), on_card(needed(8) + COPIES - 5000, copies="auto")
    assert (with_room["copies"], with_room["decoded"]) == (COPIES, 8)
    assert (without["copies"], without["decoded"]) == (0, 8)
    assert with_room["decoding"] == without["decoding"] + COPIES
    assert with_room["rollout"] - without["rollout"] == COPIES


def test_copies_take_the_room_of_prompts_where_they_are_asked_for():
    few, more = on_card(needed(4) + 1, copies=True), on_card(needed(4) + 1, copies=False)
    assert (few["copies"], few["decoded"]) == (COPIES, 3)
    assert (more["copies"], more["decoded"]) == (0, 4)
    assert on_card(COPIES / 2, copies=True)["decoded"] == 1
    assert memory.estimate(SIZES, replace(LOAD, decoded=2, copies=True))["copies"] == COPIES  # no card is known
    assert memory.estimate(SIZES, replace(LOAD, decoded=2, copies="auto"))["copies"] == 0


def test_a_pass_over_prompts_is_counted_up_to_its_bound():
    per_token = memory._prefill(SIZES, replace(LOAD, prompt=1), 1)
    assert memory.estimate(SIZES, replace(LOAD, decoded=8))["prefill"] == 800 * per_token
    assert memory.estimate(SIZES, replace(LOAD, decoded=200))["prefill"] == 8192 * per_token
    assert memory.estimate(SIZES, replace(LOAD, decoded=2, prompt=9000))["prefill"] == 9000 * per_token
    assert memory.estimate(SIZES, replace(LOAD, decoded=200, packed=False))["prefill"] == 20_000 * per_token


def test_the_estimate_and_the_engine_plan_with_the_same_numbers(make_backbone, family):
    backbone = make_backbone(family, quantize="nf4", lora=LoRA(rank=4), dtype="bfloat16")
    sizes = memory.sizes(loading.skeleton(backbone.hf.config))
    load = replace(LOAD, packed=backbone.shares_keys, copies=True, decoded=1)
    assert backbone.decoding_bytes(100, 4, 50) == memory._cache(sizes, load) + memory._logits(sizes, load)
    assert backbone.prefill_bytes(prefilled(2, 100)) == memory._prefill(sizes, load, 2)
    if family not in ("qwen3_vl_moe", "qwen3_5"):  # experts and recurrent layers: what is linear there is not all of it
        assert backbone.dequantised_bytes() == pytest.approx(memory.estimate(sizes, load)["copies"], rel=0.1)
    assert memory.estimate(sizes, replace(load, copied=123.0))["copies"] == 123


@pytest.mark.parametrize(
    ("settings", "on_gpu", "expected"),
    [({}, True, ("auto", 50)), ({}, False, (False, 0)), ({"dequantize": True}, False, (True, 50)), ({"dequantize": False}, True, (False, 0)),
     ({"merge_adapters": True}, False, (True, 80)), ({"merge_adapters": "auto"}, True, ("auto", 80)),
     ({"merge_adapters": "auto", "dequantize": True}, True, (True, 50))],
)  # fmt: skip
def test_what_the_settings_tell_of_copies(settings, on_gpu, expected):
    backbone = SimpleNamespace(merged_bytes=lambda: 80, dequantised_bytes=lambda: 50)
    assert HFRollout(**settings).planned_copies(backbone, on_gpu) == expected
    plain = SimpleNamespace(merged_bytes=lambda: 0, dequantised_bytes=lambda: 0)
    assert HFRollout(**settings).planned_copies(plain, on_gpu) == (False, 0)


@pytest.mark.parametrize("settings", [{"merge_adapters": False}, {"merge_adapters": False, "dequantize": True}, {"merge_adapters": True}])
@torch.no_grad()
def test_a_pass_over_prompts_takes_what_is_computed(make_backbone, settings):
    backbone = make_backbone("qwen2_5_vl", quantize="nf4", lora=LoRA(rank=4))
    ids_BP = torch.randint(10, 200, (4, 200))
    positions = torch.arange(200).expand(3, 4, 200)

    def run() -> None:
        held.append(backbone.empty_cache())
        backbone.hidden(ids_BP, torch.ones_like(ids_BP), positions, cache=held[-1])

    held: list = []
    with backbone.sampling(**settings):
        run()
        peak = allocated_peak(run)
    keys = sum(x.nbytes for layer in held[-1].layers for x in (layer.keys, layer.values))
    assert 0.8 < (peak - keys) / backbone.prefill_bytes(800) < 1.05


def test_sampling_takes_as_many_copies_of_the_logits_as_are_counted():
    from locus_lightning.backbones.facts import LOGITS_IN_SAMPLING
    from locus_lightning.rollout.base import SamplingParams

    logits_RV = torch.randn(16, 20_000)
    peak = allocated_peak(lambda: decoding.sample_token(logits_RV, SamplingParams(8)))
    assert peak + logits_RV.nbytes == pytest.approx(LOGITS_IN_SAMPLING * logits_RV.nbytes, rel=0.05)
