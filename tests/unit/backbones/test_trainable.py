"""What trains, what is the reference, what is quantised."""

from __future__ import annotations

import pytest
import torch

from locus_lightning.backbones import loading
from locus_lightning.backbones.adapters import LoRA
from tests.conftest import FAMILIES, contents, make_sample
from tests.unit.backbones.rows import rollouts


@pytest.mark.parametrize("settings", [{}, {"train_vision": True}, {"lora": LoRA(rank=4)}, {"lora": LoRA(rank=4), "train_vision": True}])
def test_gradients_reach_what_is_trainable_and_nothing_else(make_backbone, family, settings):
    backbone = make_backbone(family, **settings)
    prompts = backbone.encode(contents(backbone, [make_sample()]))
    backbone.logps(prompts, [[backbone.tokenize_answer("[1, 2, 3, 4]")]])[0].sum().backward()
    vision = {id(p) for p in loading.vision_parameters(backbone.hf)}
    reached = {n: p for n, p in backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached
    assert any(id(p) in vision for p in reached.values()) is settings.get("train_vision", False)
    language = [n for n, p in reached.items() if id(p) not in vision]
    assert language
    assert all("lora_" in n for n in language) is ("lora" in settings)


@pytest.mark.parametrize("settings", [{}, {"lora": LoRA(rank=4)}, {"train_vision": True}], ids=["full", "lora", "vision"])
def test_reference_is_the_model_before_training(make_backbone, family, settings):
    backbone = make_backbone(family, **settings)
    backbone.freeze_reference()
    prompts = backbone.encode(contents(backbone, [make_sample()]))
    answer = [[backbone.tokenize_answer("[1, 2, 3, 4]")]]
    before, _ = backbone.logps(prompts, answer)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    for _ in range(2):  # a fresh adapter's first gradient reaches only its second matrix
        optimizer.zero_grad()
        (-backbone.logps(prompts, answer)[0].sum()).backward()
        optimizer.step()
    after, _ = backbone.logps(prompts, answer)
    reference, _ = backbone.logps(prompts, answer, reference=True)
    assert (after - before).abs().max() > 1e-3
    assert torch.allclose(reference, before, atol=1e-5)


def test_full_fine_tuning_shares_the_frozen_tower_with_its_reference(make_backbone):
    backbone = make_backbone("llava")
    backbone.freeze_reference()
    assert backbone.reference.base_model.vision_tower is backbone.hf.base_model.vision_tower
    assert backbone.reference.base_model.language_model is not backbone.hf.base_model.language_model


def test_nf4_reaches_the_language_model_only_and_trains(make_backbone, family):
    backbone = make_backbone(family, quantize="nf4", lora=LoRA(rank=4), dtype="bfloat16")
    names = loading.quantised_linears(backbone.hf)
    linears = loading._language_linears(backbone.hf)
    assert names
    assert all("language_model" in n or "text_model" in n for n in names)
    assert not any(part in n for n in names for part in ("vision", "visual", "connector", "projector", "lm_head"))
    assert len(linears) >= len(names)
    embedding = backbone.hf.get_input_embeddings().weight
    assert embedding.dtype == torch.bfloat16, "embeddings stay as loaded, not fp32"
    prompts, _, completions = rollouts(backbone, [make_sample(), make_sample(60, 60, (5, 5, 40, 40))], n=2)
    logps, _ = backbone.logps(prompts, completions)
    logps.sum().backward()
    plain, _ = backbone.logps(prompts, completions, share_prefix=False)
    assert torch.allclose(logps, plain, atol=0.15), "bfloat16"
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_a_checkpoint_holds_the_reference_only_where_it_lies_on_no_disk(make_backbone, toy_folder):
    toy = make_backbone("llava")
    toy.freeze_reference()
    assert any(name.startswith("reference.") for name in toy.saved_parameters())
    real = FAMILIES["llava"](str(toy_folder("llava")))
    real.load()
    real.freeze_reference()
    assert not any(name.startswith("reference.") for name in real.saved_parameters())
    assert all("vision_tower" not in name for name in real.saved_parameters()), "the frozen tower lies on disk"
    with_adapter = FAMILIES["llava"](str(toy_folder("llava")), lora=LoRA(rank=2))
    with_adapter.load()
    assert all("lora_" in name for name in with_adapter.saved_parameters())
