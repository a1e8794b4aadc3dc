"""A vision tower that attends to its windows in few calls gives what transformers' loop gives."""

from __future__ import annotations

import pytest
import torch

from locus_lightning.backbones.shared_prefix import windows
from tests.conftest import contents, make_sample


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_windows_in_few_calls_are_windows_one_by_one(make_backbone, family, monkeypatch):
    images = [make_sample(), make_sample(60, 130, (3, 60, 30, 110), 1), make_sample(150, 64, (100, 5, 140, 50), 2)]
    backbone = make_backbone(family, dtype="float64", train_vision=True)
    tower = backbone.hf.base_model.visual
    prompts, features, gradients, calls = backbone.encode(contents(backbone, images)), [], [], []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls[-1] += 1
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    for name in (windows.NAME, "sdpa"):
        assert name == "sdpa" or tower.config._attn_implementation == name
        tower.config._attn_implementation_internal = name
        calls.append(0)
        out = torch.cat([image for row in backbone.vision_features(prompts) for image in row])
        out.square().sum().backward()
        features.append(out.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in tower.parameters() if p.grad is not None]))
        backbone.zero_grad()
    assert torch.allclose(*features, atol=1e-9)
    assert torch.allclose(*gradients, atol=1e-9)
    assert calls[0] < calls[1]


def test_parts_of_very_different_length_do_not_stand_in_one_call():
    ends = torch.tensor([0, 100, 164, 228, 232])
    batches = windows._batches(ends)
    assert [tuple(batch.index_NL.shape) for batch in batches] == [(3, 100), (1, 4)]
    assert batches[0].there_NL.sum() == 228
    assert windows._batches(ends) is batches
