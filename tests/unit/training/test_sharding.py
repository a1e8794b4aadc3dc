"""Weights in pieces, on a mesh of one process; two processes are in ``tests/integration/test_sharding.py``."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.tensor import DTensor

from locus_lightning.backbones.adapters import LoRA
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.training.memory import Load, estimate, sizes
from locus_lightning.training.sharding import FSDP2Strategy, as_one_pass, gathered, shard
from tests.conftest import contents


@pytest.fixture
def strategy(tmp_path, monkeypatch):
    """A strategy whose processes are this one alone."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    made = FSDP2Strategy()
    made._device_mesh = {"data_parallel": init_device_mesh("cpu", (1,))}
    yield made
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["all weights", "all weights with a reference", "adapters"])
def test_rollouts_of_gathered_weights_are_one_pass_and_give_what_whole_ones_give(make_backbone, samples, strategy, kind):
    whole, pieces = (make_backbone("llava", lora=LoRA(rank=4) if kind == "adapters" else None) for _ in range(2))
    if "reference" in kind:
        pieces.freeze_reference()
    shard(pieces, strategy, mixed=False)
    root, layers, _ = pieces.shardable()[0]
    assert isinstance(next(layers[0].parameters()), DTensor)
    passes = []
    one_pass = root.one_pass
    root.one_pass = lambda do: (passes.append(do), one_pass(do))[1]
    sampling = SamplingParams(6, temperature=0.0)
    with torch.no_grad(), gathered(pieces):
        assert not isinstance(next(layers[0].parameters()), DTensor)
        made = as_one_pass(pieces, lambda: HFRollout().generate(pieces, pieces.encode(contents(pieces, samples)), 2, sampling))
        assert not isinstance(next(layers[0].parameters()), DTensor), "nothing was let go in between"
    assert len(passes) == 1
    assert isinstance(next(layers[0].parameters()), DTensor)
    with torch.no_grad():
        expected = HFRollout().generate(whole, whole.encode(contents(whole, samples)), 2, sampling)
    assert all(torch.equal(a.ids_T, b.ids_T) for x, y in zip(made, expected, strict=True) for a, b in zip(x, y, strict=True))


def test_shares_of_memory_add_up(make_backbone):
    """Of eight processes each holds an eighth of what can be shared out, and the whole policy during a rollout."""
    model = sizes(make_backbone("llava").hf)
    load = Load(prompt=100, completion=10, group=4, micro_batch=1, decoded=2, nf4=False, rank=0, weight_bytes=4, reference=True)
    one = estimate(model, load)
    eight = estimate(model, Load(**{**load.__dict__, "shards": 8, "gathered_bytes": 2}))
    for name in ("reference", "gradients", "optimiser"):
        assert eight[name] == pytest.approx(one[name] / 8)
    policy = sum(i * o for i, o in model.linears) + model.other
    assert eight["weights"] == pytest.approx(policy * 4 / 8 + model.vision * 4)
    assert eight["gathered"] == policy * 2
    assert one["gathered"] == 0
    assert eight["rollout"] > eight["weights"] + eight["gathered"]
