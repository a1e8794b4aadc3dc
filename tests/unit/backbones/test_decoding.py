"""Decoding: what is sampled is what is scored, alone and among others."""

from __future__ import annotations

from dataclasses import replace

import torch

from locus_lightning.backbones.adapters import LoRA
from locus_lightning.rollout import decoding
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.decoding import sample_token
from locus_lightning.rollout.hf import HFRollout
from tests.conftest import contents, make_sample
from tests.unit.backbones.rows import SIX, rollouts


def test_decoding_with_prompts_kept_once_equals_decoding_with_repeated_ones(make_backbone, packed_family, samples, monkeypatch):
    """Prompts of different length, rows that leave at different times; also where the model's attention is not ours."""
    results = []
    for ours in (True, False):
        backbone = make_backbone(packed_family, dtype="float64")
        assert backbone.shares_keys
        monkeypatch.setattr(type(backbone), "eos_ids", tuple(range(0, 1000, 20)))  # one token of twenty ends a completion
        backbone.shares_keys = ours
        _, groups, _ = rollouts(backbone, samples, n=4, sampling=SamplingParams(max_new_tokens=40))
        assert len({len(made.ids_T) for group in groups for made in group}) > 1
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


def test_adapters_of_4_bit_layers_act_fused_and_merged_as_they_do_in_training(make_backbone, samples):
    backbone = make_backbone("qwen2_5_vl", lora=LoRA(rank=2, alpha=6), quantize="nf4")
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    prompts, answers = backbone.encode(contents(backbone, samples)), [[backbone.tokenize_answer("[1, 2, 3, 4]")] for _ in samples]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with torch.no_grad():
        expected, _ = backbone.logps(prompts, answers)
        without, _ = backbone.logps(prompts, answers, reference=True)
        assert not torch.allclose(expected, without, atol=1e-2)
        for merge in (None, True, False):
            with backbone.sampling(merge_adapters=merge):
                assert not any("lora_" in name for name, _ in backbone.named_parameters())
                logps, _ = backbone.logps(prompts, answers)
            assert torch.allclose(logps, expected, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


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


def test_prompts_that_are_run_in_several_passes_are_decoded_as_in_one(make_backbone, packed_family, samples, monkeypatch):
    backbone = make_backbone(packed_family, dtype="float64")
    prompts, results, passes = backbone.encode(contents(backbone, [*samples, make_sample(seed=9)])), [], []
    hidden = backbone.hidden
    monkeypatch.setattr(backbone, "hidden", lambda ids, *args, **kwargs: (passes.append(tuple(ids.shape)), hidden(ids, *args, **kwargs))[1])
    longest = max(len(prompt.ids_P) for prompt in prompts)
    for bound in (8192, 3 * longest, 1):
        monkeypatch.setattr(decoding, "PREFILL", bound)
        torch.manual_seed(0)
        results.append([made for group in HFRollout().generate(backbone, prompts, 2, SIX) for made in group])
    assert [rows for rows, tokens in passes if tokens == longest] == [4, 3, 1, 1, 1, 1, 1]
    for other in results[1:]:
        assert all(torch.equal(a.ids_T, b.ids_T) for a, b in zip(results[0], other, strict=True))
        assert all(torch.allclose(a.logps_T, b.logps_T, atol=1e-9) for a, b in zip(results[0], other, strict=True))
