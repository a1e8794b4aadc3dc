"""A reference model that follows the policy."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.rollout.vllm_rollout import VLLMRollout
from locus_lightning.training.reference import ReferenceSync
from tests.conftest import FAMILIES, contents, target
from tests.unit.training.test_grpo import LengthReward, data, module, trainer

KINDS = [None, LoRA(rank=4)]


class Watch(L.Callback):
    """Weights of policy and reference behind every step."""

    def __init__(self):
        self.policy, self.reference, self.kl = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *rest):
        backbone = pl_module.backbone
        trained = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
        prefix = "" if backbone.lora else "model."
        kept = {prefix + name.replace("/", "."): p for name, p in backbone.reference.named_parameters()}
        self.policy.append({name: p.detach().clone() for name, p in trained.items()})
        self.reference.append({name: kept[name].detach().clone() for name in trained})
        self.kl.append(float(trainer.callback_metrics["update/kl"]))


def fitted(kind, sync, steps=4, checkpoint=None, base="toy:llava"):
    backbone = FAMILIES["llava"](base, lora=kind)
    watch = Watch()
    model = module(backbone=backbone, rewards=[LengthReward()], objective=GRPO(kl_coef=0.01), reference_sync=sync, optimizer=lambda p: torch.optim.SGD(p, lr=2.0))  # fmt: skip
    run = trainer(max_steps=steps, callbacks=[watch])
    run.fit(model, datamodule=data(2), ckpt_path=checkpoint)
    return run, watch


def close(one, other):
    return all(torch.allclose(one[name], other[name], atol=1e-7) for name in one)


@pytest.mark.parametrize("kind", KINDS, ids=["all weights", "adapters"])
def test_the_reference_moves_by_its_share_every_so_many_steps(kind):
    _, watch = fitted(kind, ReferenceSync(every_n_steps=2, mixing=0.25))
    first, second, third, fourth = watch.reference
    assert not close(watch.policy[1], watch.policy[3]), "the policy never moved"
    assert not close(second, first)
    assert close(second, {name: 0.25 * watch.policy[1][name] + 0.75 * first[name] for name in first})
    assert close(third, second)
    assert close(fourth, {name: 0.25 * watch.policy[3][name] + 0.75 * second[name] for name in first})


@pytest.mark.parametrize("kind", KINDS, ids=["all weights", "adapters"])
def test_a_reference_that_was_just_replaced_is_the_policy(kind):
    """The KL is 0 in steps 1, 3 and 5, and not in between."""
    _, watch = fitted(kind, ReferenceSync(every_n_steps=2, mixing=1.0), steps=5)
    assert max(watch.kl[0::2]) < 1e-9
    assert min(watch.kl[1::2]) > 1e-8


def test_log_probabilities_of_a_moved_reference_are_those_of_its_own_adapter(make_backbone, samples):
    """The policy may go on; what was the policy at the move stays the reference, and the policy is left as it was."""
    backbone = make_backbone("llava", lora=LoRA(rank=4))
    prompts = backbone.encode(contents(backbone, samples[:1]))
    ids = [[backbone.tokenize_answer(target(backbone, samples[0]))]]
    matrices = [p for name, p in backbone.named_parameters() if "lora_B" in name]
    with torch.no_grad():
        bare, _ = backbone.logps(prompts, ids)
        backbone.freeze_reference(moves=True)
        for matrix in matrices:
            matrix.normal_(std=0.1)
        then, _ = backbone.logps(prompts, ids)
        assert torch.allclose(backbone.logps(prompts, ids, reference=True)[0], bare, atol=1e-6)
        backbone.move_reference(1.0)
        for matrix in matrices:
            matrix.normal_(std=0.1)
        now, _ = backbone.logps(prompts, ids)
        assert torch.allclose(backbone.logps(prompts, ids, reference=True)[0], then, atol=1e-6)
        assert torch.equal(backbone.logps(prompts, ids)[0], now)
    assert not torch.allclose(then, now, atol=1e-3)
    assert not torch.allclose(then, bare, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS, ids=["all weights", "adapters"])
def test_a_reference_that_moves_goes_on_where_a_run_was_stopped(kind, tmp_path, toy_folder):
    """Four steps are two and two, bit for bit, in policy and reference; the checkpoint of a folder holds only what cannot be read there again."""
    base = str(toy_folder("llava"))
    sync = ReferenceSync(every_n_steps=1, mixing=0.5)
    _, whole = fitted(kind, sync, base=base)
    run, half = fitted(kind, sync, steps=2, base=base)
    run.save_checkpoint(tmp_path / "half.ckpt")
    _, rest = fitted(kind, sync, checkpoint=tmp_path / "half.ckpt", base=base)
    for one, other in ((whole.policy, rest.policy), (whole.reference, rest.reference)):
        assert all(torch.equal(one[-1][name], other[-1][name]) for name in one[-1])
    assert not close(half.reference[-1], rest.reference[-1]), "the reference never moved"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": GRPO(kl_coef=0.0)}, "kl_coef 0, which needs no reference"),
        ({"rollout": VLLMRollout(), "backbone": FAMILIES["llava"]("toy:llava", lora=LoRA(rank=4))}, "VLLMRollout, which proves itself"),
    ],
)
def test_a_reference_that_cannot_move_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        trainer().fit(module(reference_sync=ReferenceSync(), **settings), datamodule=data(2))


@pytest.mark.parametrize("method", ["move_reference", "freeze_reference"])
def test_a_backbone_without_a_moving_reference_is_refused_before_weights_load(method):
    """A plugin that was written before there was one."""
    old = Backbone.move_reference if method == "move_reference" else lambda self: None
    kind = type("Old", (FAMILIES["llava"],), {method: old})
    backbone = kind("toy:llava")
    with pytest.raises(ConfigError, match="Old has no reference that moves"):
        trainer().fit(module(backbone=backbone, reference_sync=ReferenceSync(), objective=GRPO(kl_coef=0.1)), datamodule=data(2))
    assert not backbone.loaded


@pytest.mark.parametrize("values", [{"every_n_steps": 0}, {"mixing": 0.0}, {"mixing": 1.5}])
def test_settings_out_of_range_are_named(values):
    with pytest.raises(ConfigError, match=r"model\.reference_sync\."):
        ReferenceSync(**values)
