"""Kinds of adapters as peft has them: sampled, scored, saved and merged alike."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from locus_lightning.backbones import adapters
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.open import open_model
from locus_lightning.errors import ConfigError
from tests.conftest import contents
from tests.unit.backbones.rows import SIX, rollouts

KINDS = {"dora": LoRA(rank=4, dora=True), "rslora": LoRA(rank=4, alpha=8, rslora=True)}


def moved(backbone):
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        if "magnitude" in name:
            parameter.data *= 1.0 + 0.1 * torch.rand_like(parameter)
    return backbone


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_sampled_is_what_is_scored(make_backbone, family, samples, kind):
    backbone = moved(make_backbone(family, dtype="float64", lora=KINDS[kind]))
    for merge in (True, False):
        prompts, groups, completions = rollouts(backbone, samples, sampling=SIX, merge_adapters=merge)
        logps, _ = backbone.logps(prompts, completions, temperature=0.8)
        for b, group in enumerate(groups):
            for g, made in enumerate(group):
                assert torch.allclose(logps[b, g, : len(made.ids_T)], made.logps_T, atol=1e-6)
    reference, _ = backbone.logps(prompts, completions, temperature=0.8, reference=True)
    base = make_backbone(family, dtype="float64")
    assert torch.allclose(reference, base.logps(base.encode(contents(base, samples)), completions, temperature=0.8)[0], atol=1e-9)
    assert not torch.allclose(logps, reference, atol=1e-3)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_saved_adapter_opens_as_the_model_that_was_trained(make_backbone, samples, tmp_path, toy_folder, kind):
    from tests.conftest import FAMILIES

    backbone = FAMILIES["qwen2_5_vl"](str(toy_folder("qwen2_5_vl")), lora=KINDS[kind])
    backbone.load()
    moved(backbone)
    answers = [[backbone.tokenize_answer("[1, 2, 3, 4]")] for _ in samples]
    before, _ = backbone.logps(backbone.encode(contents(backbone, samples)), answers)
    backbone.save_pretrained(tmp_path)
    again = open_model(str(tmp_path), device="cpu")
    assert torch.allclose(before, again.logps(again.encode(contents(again, samples)), answers)[0], atol=1e-4)


def test_quantised_dora_acts_in_rollouts_as_in_updates(make_backbone, samples):
    backbone = moved(make_backbone("qwen2_5_vl", quantize="nf4", lora=KINDS["dora"]))
    prompts, groups, completions = rollouts(backbone, samples, sampling=SIX)
    logps, _ = backbone.logps(prompts, completions, temperature=0.8)
    assert all(torch.allclose(logps[b, g, : len(m.ids_T)], m.logps_T, atol=1e-3) for b, row in enumerate(groups) for g, m in enumerate(row))


def test_patterns_and_scales_reach_peft(make_backbone):
    backbone = make_backbone("llava", lora=LoRA(rank=4, alpha=8, rslora=True, rank_pattern={"q_proj": 16}, alpha_pattern={"q_proj": 2}))
    scales = {}
    for name, module in backbone.named_modules():
        if hasattr(module, "lora_A") and module.lora_A:
            scales[name.rsplit(".", 1)[-1]] = (module.r["default"], module.scaling["default"])
    assert scales["q_proj"] == (16, 0.5)
    assert scales["v_proj"] == (4, 4.0)
    with pytest.raises(ConfigError, match=r"rank_pattern names 'q_porj'.*q_proj"):
        make_backbone("llava", lora=LoRA(rank_pattern={"q_porj": 2}))


def test_b_matrices_get_a_rate_of_their_own(make_backbone):
    backbone = make_backbone("llava", lora=LoRA(rank=4, plus=16))
    groups = backbone.parameter_groups()
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    assert [group.get("lr_factor", 1.0) for group in optimizer.param_groups] == [1.0, 16]
    assert len(groups[0]["params"]) == len(groups[1]["params"])
    assert backbone.parameter_groups() != make_backbone("llava", lora=LoRA(rank=4)).parameter_groups()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dropout": 0.1}, "sampled with"), ({"init": "pissa"}, "reference"), ({"modules_to_save": ["lm_head"]}, "adapters off"),
     ({"plus": 0.0}, "above 0"), ({"rank": 0}, "at least 1"), ({"rank_pattern": {"q_proj": 0}}, "at least 1")],
)  # fmt: skip
def test_what_would_break_the_reference_is_refused_with_its_reason(settings, message):
    with pytest.raises(ConfigError, match=message):
        replace(LoRA(), **settings)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_an_adapter_is_added_in_one_product_with_the_gradients_of_peft(make_backbone, samples, quantize):
    lora = LoRA(rank=4, alpha=6, rank_pattern={"q_proj": 8}, alpha_pattern={"up_proj": 1})
    backbone = moved(make_backbone("qwen2_5_vl", dtype="float32" if quantize else "float64", quantize=quantize, lora=lora))
    layers = [module for module in backbone.modules() if isinstance(module, adapters._OneProduct)]
    assert len(layers) == 7 * backbone.hf.config.get_text_config().num_hidden_layers
    prompts, answers = backbone.encode(contents(backbone, samples)), [[backbone.tokenize_answer("[1, 2, 3, 4]")] for _ in samples]
    results, own = [], adapters._OneProduct.forward
    for forward in (own, lambda self, x: type(self).__bases__[1].forward(self, x)):
        adapters._OneProduct.forward = forward
        backbone.zero_grad()
        try:
            logps, _ = backbone.logps(prompts, answers)
            logps.sum().backward()
        finally:
            adapters._OneProduct.forward = own
        results.append([logps, *(p.grad.clone() for p in backbone.parameters() if p.grad is not None)])
    atol = 1e-3 if quantize else 1e-9
    assert len(results[0]) == len(results[1]) == 1 + 2 * len(layers)
    assert all(torch.allclose(a, b, atol=atol, rtol=atol) for a, b in zip(*results, strict=True))
    assert max(float(grad.abs().max()) for grad in results[0][1:]) > 0.1


def test_an_adapter_leaves_no_tensor_as_large_as_the_output_behind(make_backbone):
    """What peft takes for its scaled product and its sum."""
    from locus_lightning.callbacks.gauge import allocated_peak

    backbone = moved(make_backbone("llava", lora=LoRA(rank=2)))
    layer = next(
        module for name, module in backbone.named_modules() if name.endswith("up_proj") and isinstance(module, adapters._OneProduct)
    )
    x = torch.randn(500, layer.base_layer.in_features)
    out = layer(x).nbytes
    assert allocated_peak(lambda: layer(x)) < 1.2 * out < 2 * out < allocated_peak(lambda: type(layer).__bases__[1].forward(layer, x))


def test_layers_with_adapters_are_copied_and_pickled(make_backbone):
    backbone = moved(make_backbone("llava", lora=LoRA(rank=2)))
    layer = next(module for module in backbone.modules() if isinstance(module, adapters._OneProduct))
    x = torch.randn(3, layer.base_layer.in_features)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        assert not torch.equal(other(x), layer.base_layer(x))
