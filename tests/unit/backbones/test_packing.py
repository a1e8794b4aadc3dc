"""Packed rows and shared prefill: exact, in every family."""

from __future__ import annotations

import pytest
import torch

from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.shared_prefix import attention
from locus_lightning.backbones.shared_prefix.packing import why_not
from locus_lightning.rollout.base import SamplingParams
from tests.conftest import make_sample
from tests.unit.backbones.rows import both_layouts, ragged, rollouts


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("prompts_together", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packing_is_exact(make_backbone, packed_family, samples, pure_float64, monkeypatch, checkpointing, prompts_together, dense):
    """float64: log-probs to 1e-9, gradients to 1e-7 relative; one prompt and several, ragged, checkpointing on and off; as one dense
    block with a mask, and as attention of the prompt and of the completions."""
    monkeypatch.setattr(attention, "_WORTH", 10**9 if dense else 1)
    backbone = make_backbone(packed_family, dtype="float64", gradient_checkpointing=checkpointing)
    backbone.train()
    prompts, _, completions = rollouts(backbone, samples[:prompts_together])
    (packed, entropy, grads), (plain, plain_entropy, plain_grads) = both_layouts(backbone, prompts, ragged(completions))
    assert torch.allclose(packed, plain, atol=1e-9, rtol=0)
    assert torch.allclose(entropy, plain_entropy, atol=1e-9, rtol=0)
    assert grads.keys() == plain_grads.keys()
    for name, grad in grads.items():
        assert (grad - plain_grads[name]).norm() <= 1e-7 * plain_grads[name].norm() + 1e-13, name


@pytest.mark.parametrize(("dtype", "logp_error", "gradient_error"), [("float32", 1e-4, 1e-4), ("bfloat16", 0.1, 0.1)])
def test_packing_in_working_precision(make_backbone, packed_family, samples, dtype, logp_error, gradient_error):
    """float32: log-probs to 1e-4, gradients to 1e-4 relative; bfloat16: 0.1 and 0.1, mean log-prob error 0.02."""
    backbone = make_backbone(packed_family, dtype=dtype)
    prompts, _, completions = rollouts(backbone, samples)
    (packed, _, grads), (plain, _, plain_grads) = both_layouts(backbone, prompts, ragged(completions))
    assert torch.allclose(packed, plain, atol=logp_error, rtol=0)
    assert (packed - plain).abs().mean() < logp_error / 5
    flat, plain_flat = (torch.cat([g[name].float().flatten() for name in sorted(g)]) for g in (grads, plain_grads))
    assert (flat - plain_flat).norm() <= gradient_error * plain_flat.norm()


@pytest.mark.parametrize("reference", [False, True])
def test_packing_with_the_adapter_on_and_off(make_backbone, packed_family, samples, reference):
    backbone = make_backbone(packed_family, dtype="float64", lora=LoRA(rank=4))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)  # an adapter that does something
    prompts, _, completions = rollouts(backbone, samples)
    (packed, _, _), (plain, _, _) = both_layouts(backbone, prompts, ragged(completions), reference=reference, train=not reference)
    assert torch.allclose(packed, plain, atol=1e-9, rtol=0)
    other, _ = backbone.logps(prompts, ragged(completions), temperature=0.8, reference=not reference)
    assert (packed - other).abs().max() > 1e-3


def test_equal_ids_with_different_pixels_are_different_prompts(make_backbone, packed_family):
    """Two prompts of the same tokens and other pictures, decoded and scored together: each keeps its own pictures."""
    backbone = make_backbone(packed_family, dtype="float64")
    prompts, groups, completions = rollouts(backbone, [make_sample(seed=0), make_sample(seed=1)])
    assert torch.equal(prompts[0].ids_P, prompts[1].ids_P)
    (packed, _, _), (plain, _, _) = both_layouts(backbone, prompts, completions, train=False)
    assert torch.allclose(packed, plain, atol=1e-9, rtol=0)
    swapped, _ = backbone.logps([prompts[1], prompts[0]], completions, temperature=0.8)
    assert (packed - swapped).abs().max() > 1e-6
    for b, group in enumerate(groups):
        for g, made in enumerate(group):
            assert torch.allclose(packed[b, g, : len(made.ids_T)], made.logps_T, atol=1e-9)


def test_a_shared_prefill_samples_from_the_distribution_of_a_lone_prompt(make_backbone, family):
    """First tokens of many shared-prefix rollouts against the plain forward pass's probabilities."""
    backbone = make_backbone(family)
    sample = make_sample()
    prompts, groups, _ = rollouts(backbone, [sample], n=2000, sampling=SamplingParams(max_new_tokens=1, temperature=0.5))
    drawn = torch.bincount(torch.cat([made.ids_T for made in groups[0]]), minlength=10)
    tokens = drawn.topk(5).indices
    logps, _ = backbone.logps(prompts, [[token[None] for token in tokens]], temperature=0.5, share_prefix=False)
    expected = logps[0, :, 0].exp()
    deviation = (expected * (1 - expected) / 2000).sqrt()
    assert ((drawn[tokens] / 2000 - expected).abs() < 5 * deviation + 1e-3).all()


def test_a_family_that_cannot_be_packed_says_so_once_and_runs_the_plain_batch(make_backbone, samples, monkeypatch, caplog):
    from locus_lightning.backbones import hf

    plain = make_backbone("llava", dtype="float64")
    monkeypatch.setattr(hf, "why_not", lambda config: "it has layers of linear_attention")
    backbone = make_backbone("llava", dtype="float64")
    prompts, _, completions = rollouts(backbone, samples)
    seen = []
    monkeypatch.setattr(
        hf, "lay_out", lambda *a, share_prefix, real=hf.lay_out: seen.append(share_prefix) or real(*a, share_prefix=share_prefix)
    )
    for _ in range(3):
        logps, _ = backbone.logps(prompts, completions)
    assert seen == [False] * 3
    assert caplog.text.count("cannot share a prompt") == 1
    assert torch.allclose(logps, plain.logps(prompts, completions)[0], atol=1e-9)
    assert backbone.row_tokens(100, 8, 10) == 8 * 110
    assert plain.row_tokens(100, 8, 10) == 100 + 80


def test_which_models_can_be_packed():
    from transformers import Gemma3Config, LlavaConfig, Qwen2_5_VLConfig, Qwen3_5Config

    assert why_not(LlavaConfig()) is None
    assert why_not(Qwen2_5_VLConfig()) is None
    assert "sliding_attention" in why_not(Gemma3Config())
    assert "linear_attention" in why_not(Qwen3_5Config())


def test_a_sliding_window_is_not_packed():
    from types import SimpleNamespace

    def reason(**text):
        return why_not(SimpleNamespace(get_text_config=lambda: SimpleNamespace(**text)))

    assert "a sliding window of 4,096 positions" in reason(sliding_window=4096)
    assert reason(sliding_window=4096, use_sliding_window=False) is None
    assert reason(sliding_window=4096, layer_types=["full_attention"] * 2) is None
    assert "sliding_attention" in reason(sliding_window=4096, layer_types=["full_attention", "sliding_attention"])
    assert reason(sliding_window=None) is None
