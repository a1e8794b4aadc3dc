"""One contract, every family: frames, equal function in sampler, packed row and plain batch, gradients where they belong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from locus_lightning.backbones import loading
from locus_lightning.backbones.auto import AutoBackbone
from locus_lightning.backbones.generic import GenericBackbone
from locus_lightning.backbones.loading import LoRA
from locus_lightning.backbones.shared_prefix import attention
from locus_lightning.backbones.shared_prefix.packing import why_not
from locus_lightning.errors import CheckpointError, ConfigError
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.hf import HFRollout, sample_token
from locus_lightning.tasks.cue_search import CuePrompt, CueSearch
from locus_lightning.types import Question
from tests.conftest import FAMILIES, contents, make_sample, prompt_length, target

SIX = SamplingParams(max_new_tokens=6, temperature=0.8)


def rollouts(backbone, samples, n=3, sampling=SIX, seed=0):
    torch.manual_seed(seed)
    prompts = backbone.encode(contents(backbone, samples))
    groups = HFRollout().generate(backbone, prompts, n, sampling)
    return prompts, groups, [[g.ids_T for g in group] for group in groups]


def ragged(completions):
    """Cut completions to different lengths, so that rows are ragged whatever was sampled."""
    return [[ids[: 1 + (b + 2 * g) % len(ids)] for g, ids in enumerate(group)] for b, group in enumerate(completions)]


@pytest.fixture
def pure_float64(monkeypatch):
    """Norms that compute in float64, where transformers' go through float32: what is left is the packing's own error."""

    def forward(self, hidden):
        eps = getattr(self, "variance_epsilon", getattr(self, "eps", 1e-6))
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps)

    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

    for norm in (LlamaRMSNorm, Qwen2RMSNorm, Qwen2_5_VLRMSNorm, Qwen2VLRMSNorm, Qwen3VLTextRMSNorm):
        monkeypatch.setattr(norm, "forward", forward)


def both_layouts(backbone, prompts, completions, *, reference=False, train=True):
    """(log-probs, entropy, gradients) of the packed row and of the plain batch."""
    results = []
    for share_prefix in (True, False):
        backbone.zero_grad()
        with torch.set_grad_enabled(train):
            logps, entropy = backbone.logps(prompts, completions, temperature=0.8, share_prefix=share_prefix, reference=reference)
        if train:
            (logps * torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)).sum().backward()
        grads = {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}
        results.append((logps.detach(), entropy, grads))
    return results


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


def test_decoding_with_prompts_kept_once_equals_decoding_with_repeated_ones(make_backbone, packed_family, samples):
    """Prompts of different length, rows that leave at different times; also where the model's attention is not ours."""
    results = []
    for ours in (True, False):
        backbone = make_backbone(packed_family, dtype="float64")
        assert backbone.shares_keys
        backbone.shares_keys = ours
        _, groups, _ = rollouts(backbone, samples, n=4, sampling=SamplingParams(max_new_tokens=40))
        assert len({len(made.ids_T) for group in groups for made in group}) > 1 or packed_family == "qwen2_5_vl"
        results.append(groups)
    for one, other in zip(*results, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.ids_T, b.ids_T)
            assert torch.allclose(a.logps_T, b.logps_T, atol=1e-9)


def test_merging_for_decoding_leaves_every_weight_as_it_was(make_backbone, family, samples):
    backbone = make_backbone(family, lora=LoRA(rank=4))
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with backbone.sampling():
        assert not any("lora_" in name for name, _ in backbone.named_parameters()), "the adapter stands beside no layer"
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    logps = []
    for merge in (True, False):
        torch.manual_seed(0)
        groups = HFRollout(merge_adapters=merge).generate(backbone, backbone.encode(contents(backbone, samples)), 2, SIX)
        logps.append(torch.cat([made.logps_T for group in groups for made in group]))
    assert torch.allclose(*logps, atol=1e-4)
    quantised = make_backbone("llava", lora=LoRA(rank=2), quantize="nf4")
    with quantised.sampling(merge_adapters=True):
        assert any("lora_" in name for name, _ in quantised.named_parameters())


def test_which_models_can_be_packed():
    from transformers import Gemma3Config, LlavaConfig, Qwen2_5_VLConfig, Qwen3_5Config

    assert why_not(LlavaConfig()) is None
    assert why_not(Qwen2_5_VLConfig()) is None
    assert "sliding_attention" in why_not(Gemma3Config())
    assert "linear_attention" in why_not(Qwen3_5Config())


def test_sampler_logps_equal_recomputed_ones_at_every_temperature(make_backbone, family, samples):
    backbone = make_backbone(family, dtype="float64")
    for temperature in (1.0, 0.6):
        prompts, groups, completions = rollouts(backbone, samples, sampling=replace(SIX, temperature=temperature))
        logps, _ = backbone.logps(prompts, completions, temperature=temperature)
        for b, group in enumerate(groups):
            for g, made in enumerate(group):
                assert torch.allclose(logps[b, g, : len(made.ids_T)], made.logps_T, atol=1e-9)


def test_temperature_divides_the_logits(make_backbone):
    backbone = make_backbone("llava")
    hidden = torch.randn(2, 96)
    assert torch.allclose(backbone.next_token_logits(hidden, 0.5), backbone.next_token_logits(hidden) * 2)


def test_a_prompt_alone_and_among_others_is_the_same(make_backbone, family, samples):
    """Left padding, and the positions of multimodal rotary embeddings, change nothing; nor does state of other prompts."""
    backbone = make_backbone(family, dtype="float64")
    greedy = SamplingParams(max_new_tokens=5, temperature=0.0)
    prompts = backbone.encode(contents(backbone, samples))
    together = HFRollout().generate(backbone, prompts, 1, greedy)
    for prompt, (made,) in zip(prompts, together, strict=True):
        (alone,) = HFRollout().generate(backbone, [prompt], 1, greedy)[0]
        assert torch.equal(alone.ids_T, made.ids_T)
        assert torch.allclose(alone.logps_T, made.logps_T, atol=1e-9)


def test_generation_agrees_with_transformers_own(make_backbone, family):
    backbone = make_backbone(family, dtype="float64")
    sample = make_sample()
    (prompt,) = backbone.encode(contents(backbone, [sample]))
    ((made,),) = HFRollout().generate(backbone, [prompt], 1, SamplingParams(max_new_tokens=6, temperature=0.0))
    out = backbone.processor(
        text=[backbone.prompt_text(contents(backbone, [sample])[0])],
        images=[backbone.prepare_image(sample.image), backbone.prepare_image(sample.cue.image)],
        return_tensors="pt",
    )
    out["pixel_values"] = out["pixel_values"].double()
    theirs = backbone.hf.generate(**out, max_new_tokens=6, do_sample=False, suppress_tokens=list(backbone.banned_ids))
    expected = theirs[0, out["input_ids"].shape[1] :]
    assert torch.equal(made.ids_T[: len(expected)], expected[: len(made.ids_T)])


def test_each_image_stands_behind_its_label(make_backbone, family):
    """Also where the family's chat template moves images to the front."""
    backbone = make_backbone(family)
    text = backbone.prompt_text(contents(backbone, [make_sample()])[0])
    mark = backbone.processor.image_token
    first, second = text.index(mark), text.rindex(mark)
    assert text.count(mark) == 2
    assert text.index("Image 1") < first < text.index("Image 2") < second < text.index("was cut out")


@pytest.mark.parametrize("which", ["image", "cue"])
def test_changing_either_image_changes_the_logps(make_backbone, family, which):
    backbone = make_backbone(family, dtype="float64")
    sample, other = make_sample(seed=0), make_sample(seed=1)
    changed = replace(sample, image=other.image) if which == "image" else replace(sample, cue=other.cue)
    answer = [[backbone.tokenize_answer("[1, 2, 3, 4]")]]
    before, _ = backbone.logps(backbone.encode(contents(backbone, [sample])), answer)
    after, _ = backbone.logps(backbone.encode(contents(backbone, [changed])), answer)
    assert (before - after).abs().max() > 1e-6


def test_image_tokens_equal_features(make_backbone, family, samples):
    backbone = make_backbone(family)
    for prompt in backbone.encode(contents(backbone, samples)):
        placeholders = sum(int((prompt.ids_P == i).sum()) for i in backbone.banned_ids)
        assert placeholders == sum(len(image) for image in prompt.features)
        assert len(prompt.features) >= (1 if family in ("idefics3", "smolvlm") else 2)


def test_placeholder_ids_are_never_sampled(make_backbone, family):
    backbone = make_backbone(family)
    with torch.no_grad():
        head = backbone.hf.get_output_embeddings()
        for banned in backbone.banned_ids:  # make it by far the likeliest
            head.weight[banned] = 0
        hidden = torch.randn(64, head.weight.shape[1])
        for banned in backbone.banned_ids:
            head.weight[banned] = hidden.mean(0) * 1000
    assert backbone.banned_ids
    tokens, logps = sample_token(backbone.next_token_logits(hidden), SamplingParams())
    assert not torch.isin(tokens, torch.tensor(backbone.banned_ids)).any()
    assert torch.isfinite(logps).all()


def test_every_end_id_ends_and_stays_in_the_completion(make_backbone):
    backbone = make_backbone("qwen2_5_vl")
    assert len(backbone.eos_ids) == 2
    for wanted in backbone.eos_ids:
        hidden_of = backbone.hf.get_output_embeddings().weight
        original = backbone.next_token_logits

        def only(hidden, temperature=1.0, *, reference=False, wanted=wanted, original=original):
            return torch.full_like(original(hidden, temperature), -50.0).index_fill(-1, torch.tensor([wanted]), 0.0)

        backbone.next_token_logits = only
        ((made,),) = HFRollout().generate(backbone, backbone.encode(contents(backbone, [make_sample()])), 1, SIX)
        backbone.next_token_logits = original
        assert made.ids_T.tolist() == [wanted]
        assert not made.truncated
        assert hidden_of is backbone.hf.get_output_embeddings().weight


def test_a_completion_cut_off_is_truncated(make_backbone):
    backbone = make_backbone("llava")
    _, groups, _ = rollouts(backbone, [make_sample()], n=8, sampling=SamplingParams(max_new_tokens=2))
    for made in groups[0]:
        assert made.truncated == (made.ids_T[-1].item() not in backbone.eos_ids)


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


def test_a_right_answer_is_read_back_as_the_box(make_backbone, family):
    backbone = make_backbone(family)
    for size, box in [((640, 480), (200, 120, 216, 140)), ((300, 900), (20, 500, 90, 640)), ((57, 33), (3, 4, 30, 29))]:
        sample = make_sample(*size, box)
        frame = backbone.frame(sample.image.size)
        completion = CueSearch().complete(target(backbone, sample), sample, frame)
        assert completion.well_formed
        back = completion.box
        steps = (*frame.resolution, *frame.resolution)
        assert all(abs(a - b) <= 1.01 * s for a, b, s in zip(back, sample.box, steps, strict=True))
        ids = backbone.tokenize_answer(target(backbone, sample))
        assert ids[-1].item() in backbone.eos_ids
        assert backbone.decode(ids) == target(backbone, sample)


def test_qwen_frame_is_that_of_the_processors_own_resize(make_backbone):
    backbone = make_backbone("qwen2_5_vl")
    for size in [(100, 80), (640, 480), (33, 57), (500, 40)]:
        sample = make_sample(*size, (2, 2, 20, 20))
        (prompt,) = backbone.encode(contents(backbone, [sample]))
        _, rows, columns = prompt.vision["image_grid_thw"][0].tolist()
        assert backbone.frame(sample.image.size).extent == (columns * 14, rows * 14)


def test_rollouts_and_updates_are_the_same_function_in_train_mode(make_backbone, samples):
    backbone = make_backbone("llava", gradient_checkpointing=True, lora=LoRA(rank=4))
    answer = [[backbone.tokenize_answer("[1, 2, 3, 4]")] for _ in samples]
    prompts = backbone.encode(contents(backbone, samples))
    backbone.eval()
    before, _ = backbone.logps(prompts, answer)
    backbone.train()
    after, _ = backbone.logps(prompts, answer)
    assert torch.allclose(before, after, atol=1e-6)
    with backbone.sampling():
        assert not backbone.training
    assert backbone.training


def test_constructing_is_free_and_errors_are_sentences(tmp_path, toy_folder):
    llava = FAMILIES["llava"]
    with pytest.raises(CheckpointError, match="no folder here"):
        llava(str(tmp_path / "nothing")).check()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        llava(str(tmp_path)).check()
    with pytest.raises(CheckpointError, match="'qwen2_5_vl' model and LlavaBackbone speaks llava"):
        llava(str(toy_folder("qwen2_5_vl"))).check()
    with pytest.raises(CheckpointError, match="toy:llava"):
        llava("toy:nonsense").check()
    with pytest.raises(ConfigError, match=r"backbone\.lora"):
        llava("toy:llava", quantize="nf4")
    with pytest.raises(ConfigError, match="matches nothing.*q_proj"):
        llava("toy:llava", lora=LoRA(targets=["nope"])).load()


def test_save_and_load_round_trip(make_backbone, family, tmp_path):
    backbone = make_backbone(family, seed=3)
    backbone.save_pretrained(tmp_path / "model")
    again = FAMILIES[family](str(tmp_path / "model"))
    again.check()
    again.load()
    prompts, answer = backbone.encode(contents(backbone, [make_sample()])), [[backbone.tokenize_answer("[1, 2, 3, 4]")]]
    before, _ = backbone.logps(prompts, answer)
    after, _ = again.logps(again.encode(contents(again, [make_sample()])), answer)
    assert torch.allclose(before, after, atol=1e-6)
    assert list((tmp_path / "model").glob("*.safetensors"))


def test_draw_follows_the_distribution():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, float("-inf")])
    tokens, logps = sample_token(logits.expand(20_000, 4), SamplingParams())
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    assert torch.allclose(shares, logits.softmax(0), atol=0.015)
    assert torch.allclose(logps, logits.log_softmax(0)[tokens])


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(500, 4)
    assert sample_token(logits, SamplingParams(top_k=2))[0].max() == 1
    assert sample_token(logits, SamplingParams(top_p=0.6))[0].max() == 0
    assert (sample_token(logits, SamplingParams(temperature=0.0))[0] == 0).all()


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


def test_auto_becomes_the_backbone_of_the_family_and_says_so(family, caplog):
    caplog.set_level("INFO")
    made = AutoBackbone(f"toy:{family}", dtype="float64")
    assert type(made) is FAMILIES[family]
    assert made.dtype == torch.float64
    assert f"backbone: {FAMILIES[family].__name__}" in caplog.text


def test_auto_hands_on_what_only_the_family_knows_and_refuses_the_unknown(toy_folder, tmp_path):
    assert AutoBackbone("toy:qwen2_vl", family={"max_pixels": 12_544}).max_pixels == 12_544
    with pytest.raises(ConfigError, match=r"backbone\.family.*nonsense"):
        AutoBackbone("toy:llava", family={"nonsense": 1})
    config = (toy_folder("gemma3") / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"model_type": "gemma3"', '"model_type": "aya_vision"'))
    with pytest.raises(CheckpointError, match=r"'aya_vision' model.*llava.*GenericBackbone.*frame"):
        AutoBackbone(str(tmp_path))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("qwen3_vl", "gemma3")])
def test_the_generic_backbone_gives_what_the_familys_own_gives(make_backbone, family):
    torch.manual_seed(0)
    generic = GenericBackbone(f"toy:{family}", frame="thousandths", dtype="float64")
    generic.images_in_text = FAMILIES[family].images_in_text
    generic.check()
    generic.load()
    own, square = make_backbone(family, dtype="float64"), make_sample(64, 64, (5, 5, 40, 40))  # square: LLaVA's pads others
    asked = Question("q", square.image, "What is this?", "a circle")
    answer = [[own.tokenize_answer("[1, 2, 3, 4]")]]
    one, other = (b.logps(b.encode(contents(b, [asked])), answer)[0] for b in (generic, own))
    assert torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_the_generic_backbone_refuses_what_it_would_run_wrongly(family):
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="needs a backbone plugin of its own"):
        GenericBackbone(f"toy:{family}", frame="thousandths").load()


@pytest.mark.parametrize(("frame", "extent"), [("thousandths", 1000), ("fractions", 1), ("padded_fractions", 1), ("original_pixels", None)])
def test_the_generic_frame_is_the_stated_one(frame, extent):
    sample = make_sample(90, 30, (5, 5, 25, 25))
    found = GenericBackbone("toy:llava", frame=frame).frame(sample.image.size)
    assert found.extent == ((extent, extent) if extent else (90, 30))
    assert (found.offset != (0, 0)) is (frame == "padded_fractions")


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [("llava_next", "max_tiles", 2), ("internvl", "max_tiles", 1), ("smolvlm", "longest_edge", 56), ("qwen3_vl", "max_pixels", 64 * 64)],
)
def test_a_budget_saves_tokens(make_backbone, family, setting, value):
    sample = make_sample(300, 220, (5, 5, 200, 180))
    assert prompt_length(make_backbone(family, **{setting: value}), sample) < prompt_length(make_backbone(family), sample)


def test_budgets_that_cannot_be_are_refused(make_backbone):
    with pytest.raises(ConfigError, match=r"max_tiles is 0"):
        FAMILIES["internvl"]("toy:internvl", max_tiles=0)
    with pytest.raises(ConfigError, match=r"longest_edge is 57; tiles of this checkpoint are 56 px"):
        make_backbone("smolvlm", longest_edge=57)
    with pytest.raises(ConfigError, match=r"max_tiles is 1; .* smallest tile grid has 2"):
        make_backbone("llava_next", max_tiles=1)
    with pytest.raises(ConfigError, match="min_pixels .* is above"):
        make_backbone("qwen2_vl", max_pixels=28 * 28)


def test_checkpoints_that_cannot_be_used_are_told_apart(tmp_path, toy_folder, make_backbone, monkeypatch):
    import json

    (tmp_path / "own").mkdir()
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "configuration_strange.StrangeConfig"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    with pytest.raises(CheckpointError, match="brings code of its own.*trust_remote_code"):
        AutoBackbone(str(tmp_path / "own"))
    (tmp_path / "own" / "config.json").write_text(json.dumps({"model_type": "strange"}))
    with pytest.raises(CheckpointError, match="does not know"):
        AutoBackbone(str(tmp_path / "own"))
    with pytest.raises(CheckpointError, match="is gated: accept its licence"):
        raise CheckpointError(f"x {loading._why(OSError('You are trying to access a gated repo.'))}")
    for path in toy_folder("llava").iterdir():
        if path.name in ("config.json", "model.safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="processor files complete"):
        FAMILIES["llava"](str(tmp_path)).load()


def test_an_image_is_never_cut_off(make_backbone):
    backbone = make_backbone("qwen2_5_vl")
    backbone.hf.config.get_text_config().max_position_embeddings = 60
    with pytest.raises(ConfigError, match=r"a prompt has \d+ tokens and toy:qwen2_5_vl reads 60.*max_pixels"):
        backbone.encode(contents(backbone, [make_sample()]))
    from locus_lightning.errors import DataError

    with pytest.raises(DataError, match="over 200 times as long as wide"):
        backbone.encode(contents(backbone, [make_sample(4020, 20, (0, 0, 20, 20))]))


@pytest.mark.parametrize(
    ("family", "settings", "model"),
    [("llava", {"coordinates": "pixels"}, None), ("qwen2_5_vl", {"max_pixels": 56 * 56 * 2}, None), ("llava_next", {"decimals": 2, "max_tiles": 2}, None),
     ("llava", {"frame": "original_pixels"}, GenericBackbone)],
)  # fmt: skip
def test_a_saved_folder_remembers_frame_and_prompt(tmp_path, family, settings, model):
    prompt = CuePrompt(before_image="One: ", instruction=" Where?")
    saved = (model or FAMILIES[family])(f"toy:{family}", **settings)
    saved.load()
    saved.save_pretrained(tmp_path, CueSearch(prompt).remember())
    again = AutoBackbone(str(tmp_path))
    again.check()
    again.load()
    assert type(again) is type(saved)
    task = CueSearch()
    task.adopt(again.remembers)
    assert task.prompt == prompt
    assert again.family_settings() == saved.family_settings()
    sample = make_sample()
    assert again.frame(sample.image.size) == saved.frame(sample.image.size)
    stated = CueSearch(CuePrompt())
    stated.adopt(again.remembers)
    assert stated.prompt == CuePrompt(), "what is asked for goes before what is remembered"


def test_a_folder_cannot_name_code_to_run(tmp_path, toy_folder):
    for path in toy_folder("llava").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "locus.json").write_text('{"backbone": "antigravity.geohash", "family": {}, "prompt": {}}')
    assert type(AutoBackbone(str(tmp_path))) is FAMILIES["llava"]
    (tmp_path / "locus.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not the record of a saved backbone"):
        AutoBackbone(str(tmp_path))


def test_a_sliding_window_is_not_packed():
    from types import SimpleNamespace

    def reason(**text):
        return why_not(SimpleNamespace(get_text_config=lambda: SimpleNamespace(**text)))

    assert "a sliding window of 4,096 positions" in reason(sliding_window=4096)
    assert reason(sliding_window=4096, use_sliding_window=False) is None
    assert reason(sliding_window=4096, layer_types=["full_attention"] * 2) is None
    assert "sliding_attention" in reason(sliding_window=4096, layer_types=["full_attention", "sliding_attention"])
    assert reason(sliding_window=None) is None


def test_the_generic_backbone_compares_packed_rows_with_plain_ones(monkeypatch):
    from locus_lightning.backbones import hf

    original = hf.lay_out

    def shifted(prompts, completions, *, share_prefix):
        rows = original(prompts, completions, share_prefix=share_prefix)
        return replace(rows, positions=rows.positions * 2) if share_prefix else rows

    monkeypatch.setattr(hf, "lay_out", shifted)
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="forward pass differs"):
        GenericBackbone("toy:qwen2_vl", frame="thousandths").load()


def test_a_frame_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="frame is 'pixels'; give one of thousandths"):
        GenericBackbone("toy:llava", frame="pixels")
