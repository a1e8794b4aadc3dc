"""The algorithm as a whole: the same gradient however it is split, reuse, filtering, truncation, statistics."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.data.source import CueKey
from locus_lightning.data.synthetic.scenes import SceneCues
from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import weight_total
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.rewards.format import FormatReward
from locus_lightning.rewards.iou import IoUReward
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.training.checks import check_strategy
from locus_lightning.training.grpo import LocusModule
from locus_lightning.training.optimizers import MuonAdamW
from locus_lightning.training.rollout_batch import BatchPlan, RolloutBatch, counted, pack_state, unpack_state
from locus_lightning.training.sft import SupervisedModule
from locus_lightning.types import Generation
from tests.conftest import FAMILIES, contents, prompt_length, target

SHORT = SamplingParams(max_new_tokens=5)


def data(batch_size=4, train_size=16, **settings):
    return CueDataModule(SceneCues(image_size=96, train_size=train_size, val_size=3, **settings), batch_size=batch_size, val_batch_size=3)


def module(seed=0, backbone=None, **settings):
    torch.manual_seed(seed)
    backbone = backbone or FAMILIES["llava"]("toy:llava")
    settings.setdefault("optimizer", lambda p: torch.optim.SGD(p, lr=0.1))
    return LocusModule(backbone, sampling=settings.pop("sampling", SHORT), group_size=settings.pop("group_size", 3), **settings)


def trainer(**settings):
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "max_steps": 1,
    }
    return L.Trainer(**(defaults | settings))


class LengthReward(IoUReward):
    """Rewards that differ within a group even for a random model."""

    def score(self, completion, sample):
        return float(sum(completion.generation.ids_T) % 97) / 97


@pytest.fixture
def fixed_rollouts(make_backbone):
    """Eight prompts with ragged completions and random advantages, in float64."""
    backbone = make_backbone("llava", dtype="float64")
    source = SceneCues(image_size=96, train_size=8).dataset("train", 0)

    prompts = backbone.encode(contents(backbone, [source[CueKey(0, i)] for i in range(8)]))
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 6, (8, 3), generator=generator)
    completions = [[torch.randint(0, 500, (int(n),), generator=generator) for n in row] for row in lengths]
    mask = torch.arange(int(lengths.max())) < lengths[..., None]
    return backbone, prompts, completions, torch.randn(8, 3, generator=generator), mask


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 2)])
def test_the_gradient_does_not_depend_on_the_split(fixed_rollouts, reduction, micro, ranks):
    """Eight prompts in one micro-batch = 8/m micro-batches of m = 2 ranks x 4: averaged as Lightning and DDP average."""
    backbone, prompts, completions, advantages, mask = fixed_rollouts
    objective = GRPO(kl_coef=0.0, reduction=reduction)

    def gradient(micro, ranks):
        backbone.zero_grad()
        per_rank = 8 // ranks
        accumulate = per_rank // micro
        total = float(weight_total(mask, reduction)) / (accumulate * ranks)
        for rank in range(ranks):
            own = slice(rank * per_rank, (rank + 1) * per_rank)
            plan = [list(range(i, i + micro)) for i in range(0, per_rank, micro)]
            rollout = RolloutBatch(prompts[own], completions[own], advantages[own], mask[own], torch.zeros(mask[own].shape))
            batches = rollout.cut(plan, [total], accumulate, reduction, 5)
            for batch in batches:
                logps, _ = backbone.logps(batch.prompts, batch.completions)
                loss, _ = objective(logps, logps.detach(), None, batch.advantages_BG, batch.weights_BGT, batch.mask_BGT)
                (loss / accumulate / ranks).backward()
        return {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}

    whole, parts = gradient(8, 1), gradient(micro, ranks)
    for name, grad in whole.items():
        assert (grad - parts[name]).norm() <= 1e-5 * grad.norm() + 1e-12, name  # the loss itself is float32


def test_accumulation_in_the_trainer_gives_the_same_step():
    """Through Lightning itself: one micro-batch of 4 against 4 of 1, accumulated."""
    results = []
    for micro, accumulate in ((4, 1), (2, 2), (1, 4)):
        model = module(rewards=[LengthReward()], micro_batch_size=micro, objective=GRPO(kl_coef=0.05))
        L.seed_everything(7)
        trainer(accumulate_grad_batches=accumulate).fit(model, datamodule=data())
        results.append(torch.cat([p.detach().flatten() for p in model.backbone.hf.base_model.language_model.parameters()]))
    assert torch.allclose(results[0], results[1], atol=1e-5)
    assert torch.allclose(results[0], results[2], atol=1e-5)


def test_a_token_budget_splits_the_pass_and_not_the_step(caplog):
    """The same weights after a step; fewer prompts at a time, more accumulation."""
    caplog.set_level("INFO")
    results = []
    for budget in (None, 10_000_000, 400, 1):
        model = module(rewards=[LengthReward()], micro_batch_size=4, token_budget=budget, objective=GRPO(kl_coef=0.05))
        L.seed_everything(7)
        run = trainer()
        run.fit(model, datamodule=data())
        results.append(torch.cat([p.detach().flatten() for p in model.backbone.hf.base_model.language_model.parameters()]))
        longest = max(prompt_length(model.backbone, data_sample(i)) for i in range(16))
        group = longest + model.group_size * model.sampling.max_new_tokens
        fits = 4 if budget is None else max(1, min(4, budget // group))
        assert model.micro_batch_size == {3: 2}.get(fits, fits)
        assert run.accumulate_grad_batches * model.micro_batch_size == 4
    for other in results[1:]:
        assert torch.allclose(results[0], other, atol=1e-5)
    assert "1 prompts a pass" in caplog.text
    assert "over the budget" in caplog.text


def data_sample(i):
    source = data()
    source.setup("fit")
    return source.datasets["train"][CueKey(0, i)]


def test_sampler_and_trainer_agree_at_every_first_use():
    """The gap that is logged is rounding alone, with one update a rollout batch and with several."""
    for settings in ({}, {"micro_batch_size": 2, "num_iterations": 2}):
        model = module(rewards=[LengthReward()], **settings)
        model.sampling = replace(model.sampling, temperature=0.7)
        seen = []
        original = model._log_update
        model._log_update = lambda stats, seen=seen, original=original: (seen.append(stats["sampler_gap_max"].item()), original(stats))
        trainer(max_steps=4).fit(model, datamodule=data())
        assert len(seen) >= 4
        assert max(seen) < 1e-5


def test_a_sampler_that_lies_is_seen():
    from locus_lightning.training.rollout_batch import MicroBatch, sampler_gap

    mask = torch.tensor([[[True, True, False]]])
    micro = MicroBatch((), (), torch.zeros(1, 1), mask, mask.float(), torch.tensor([[[-1.0, -2.0, 0.0]]]))
    gap = sampler_gap(torch.tensor([[[-1.5, -2.0, -9.0]]]), micro)
    assert gap["sampler_gap"].item() == pytest.approx(0.25)
    assert gap["sampler_gap_max"].item() == pytest.approx(0.5)


def test_a_rollout_batch_is_reused_for_mini_batches_and_epochs():
    model = module(rewards=[LengthReward()], micro_batch_size=1, num_iterations=2)
    seen = []
    original = LocusModule.collect

    def counting(self, samples):
        made = original(self, samples)
        seen.append((self.global_step, len(made), all(m.old_logps_BGT is not None for m in made)))
        return made

    LocusModule.collect = counting
    try:
        run = trainer(accumulate_grad_batches=2, max_steps=8)
        run.fit(model, datamodule=data())
    finally:
        LocusModule.collect = original
    # 4 prompts x 2 epochs = 8 micro-steps = 4 optimiser steps a rollout batch
    assert seen == [(0, 8, True), (4, 8, True)]
    assert run.global_step == 8


def test_the_ratio_is_one_at_first_and_moves_with_reuse():
    class Watch(L.Callback):
        def __init__(self):
            self.ratios = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.ratios.append(float(trainer.callback_metrics["update/ratio_max"]))

    watch = Watch()
    model = module(rewards=[LengthReward()], micro_batch_size=4, num_iterations=2, optimizer=lambda p: torch.optim.Adam(p, lr=1e-3))
    trainer(max_steps=4, callbacks=[watch]).fit(model, datamodule=data())
    assert watch.ratios[0] == pytest.approx(1.0, abs=1e-4)
    assert watch.ratios[1] > 1.0 + 1e-4
    assert watch.ratios[2] == pytest.approx(1.0, abs=1e-4)


class ConstantReward(IoUReward):
    def score(self, completion, sample):
        return 0.5


def test_constant_groups_are_redrawn_a_bounded_number_of_times():
    model = module(rewards=[ConstantReward()], filter_groups=True, resample=2, objective=GRPO(kl_coef=0.0))
    calls = []
    model.rollout.generate, generate = (lambda *a: calls.append(len(a[1])) or generate(*a)), model.rollout.generate
    run = trainer()
    run.fit(model, datamodule=data())
    assert calls == [4, 4, 4]
    assert float(run.callback_metrics["update/loss"]) == 0.0


def test_filtered_groups_weigh_nothing_and_the_number_of_steps_stays():
    model = module(rewards=[ConstantReward()], filter_groups=True, objective=GRPO(kl_coef=0.5))
    run = trainer(max_steps=2)
    run.fit(model, datamodule=data(batch_size=2))
    assert run.global_step == 2
    assert not model.buffer


@pytest.mark.parametrize("masked", [False, True])
def test_truncated_completions_are_handled_as_configured(masked, samples):
    model = module(mask_truncated_completions=masked)
    model.backbone.load()
    model.objective = GRPO(kl_coef=0.0)
    prompts = model.backbone.encode(contents(model.backbone, samples))
    cut = Generation(torch.tensor([5, 6, 7]), torch.zeros(3), truncated=True)
    model.rollout.generate = lambda *_: [[cut, replace(cut, truncated=False), replace(cut, truncated=False)] for _ in prompts]
    groups = model.generate_groups(samples, prompts)
    mask = counted(groups, mask_truncated=model.mask_truncated_completions, filter_groups=False)
    assert mask[:, 0].all().item() is not masked
    assert mask[:, 1:].all()


def test_rewards_are_summed_by_weight_and_kept_by_name(samples):
    model = module(rewards=[IoUReward(0.9), FormatReward(0.1)])
    model.backbone.load()
    prompts = model.backbone.encode(contents(model.backbone, samples[:1]))
    answer = model.backbone.tokenize_answer(target(model.backbone, samples[0]))
    perfect = Generation(answer, torch.zeros(len(answer)), truncated=False)
    junk = Generation(answer[:3], torch.zeros(3), truncated=True)
    model.rollout.generate = lambda *_: [[perfect, junk, junk]]
    (group,) = model.generate_groups(samples[:1], prompts)
    assert group.scores["format"] == (1.0, 0.0, 0.0)
    assert group.scores["iou"][0] > 0.7
    assert group.rewards[0] == pytest.approx(0.9 * group.scores["iou"][0] + 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 1}, "group_size is 1"),
        ({"sampling": SamplingParams(5, top_k=10)}, "top_k 10"),
        ({"sampling": SamplingParams(5, top_p=0.9)}, "top_p 0.9"),
        ({"sampling": SamplingParams(5, temperature=0.0)}, "temperature is 0"),
        ({"resample": 3}, "filter_groups"),
        ({"rewards": [IoUReward(), IoUReward()]}, "twice"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        module(**settings)


def test_a_batch_that_does_not_divide_is_refused_before_weights_load():
    model = module(micro_batch_size=2)
    with pytest.raises(ConfigError, match=r"batch_size 4 is not a multiple of .* = 6"):
        trainer(accumulate_grad_batches=3).fit(model, datamodule=data())
    assert not model.backbone.loaded


def test_split_arithmetic():
    split = BatchPlan(micro_batch=2, accumulate=4, num_iterations=3)
    assert split.micro_steps(16) == 24
    assert split.updates(16) == 6
    order = split.order(16)
    assert [sorted(b for micro in order[i : i + 8] for b in micro) for i in (0, 8, 16)] == [list(range(16))] * 3
    assert order[:8] != order[8:16]


def test_a_half_used_rollout_batch_survives_packing(fixed_rollouts):
    _, prompts, completions, advantages, mask = fixed_rollouts
    rollout = RolloutBatch(prompts, completions, advantages, mask, torch.zeros(mask.shape))
    batches = rollout.cut([[0, 1], [2, 3]], [1.0, 1.0], 1, "token", 5)
    again = unpack_state(pack_state(batches))
    assert torch.equal(again[1].prompts[0].ids_P, prompts[2].ids_P)
    assert len(again[0].prompts[0].features) == len(prompts[0].features)
    assert torch.equal(again[1].weights_BGT, batches[1].weights_BGT)


def test_a_step_that_is_not_finite_is_skipped(caplog):
    model = module(rewards=[LengthReward()], objective=GRPO(kl_coef=0.0))
    model.backbone.load()
    before = {n: p.clone() for n, p in model.backbone.named_parameters()}
    original = model.objective.__class__.__call__
    model.objective.__class__.__call__ = lambda self, *a, **k: (original(self, *a, **k)[0] * float("nan"), original(self, *a, **k)[1])
    try:
        trainer().fit(model, datamodule=data())
    finally:
        GRPO.__call__ = original
    assert "not finite" in caplog.text
    assert all(torch.equal(before[n], p) for n, p in model.backbone.named_parameters())


def test_supervision_lowers_its_loss():
    torch.manual_seed(0)
    model = SupervisedModule(FAMILIES["llava"]("toy:llava"), train_vision=True, optimizer=lambda p: torch.optim.Adam(p, lr=3e-3))
    losses = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            losses.append(float(trainer.callback_metrics["update/loss"]))

    trainer(max_steps=12, callbacks=[Watch()]).fit(model, datamodule=data(batch_size=4, train_size=64))
    assert losses[-1] < losses[0] - 1


def test_clipping_schedule_and_early_stopping_work_as_on_any_module():
    from lightning.pytorch.callbacks import EarlyStopping

    model = module(rewards=[LengthReward()], warmup_ratio=0.5, schedule="cosine", objective=GRPO(kl_coef=0.0))
    stop = EarlyStopping("reward/total", mode="max", patience=1, check_on_train_epoch_end=True, stopping_threshold=-1.0)
    run = trainer(max_steps=-1, max_epochs=3, gradient_clip_val=1e-3, callbacks=[stop])
    run.fit(model, datamodule=data(batch_size=8))
    assert run.current_epoch == 0 or run.global_step == 2 * 8, "stopped after the first epoch of 2 rollout batches"
    assert run.gradient_clip_val == 1e-3


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "32-true"])
def test_every_precision_takes_a_batch(precision):
    run = trainer(precision=precision, limit_val_batches=1, num_sanity_val_steps=1)
    run.fit(module(rewards=[LengthReward()]), datamodule=data())
    assert run.global_step == 1


def test_an_empty_share_of_the_last_validation_batch_is_no_error():
    model = module()
    model.backbone.load()
    assert model.answer([]) == []
    model.metrics.update([], [])


def test_gradient_checkpointing_is_on_from_the_first_supervised_step():
    torch.manual_seed(0)
    model = SupervisedModule(FAMILIES["llava"]("toy:llava", gradient_checkpointing=True))
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            seen.append(any(getattr(m, "gradient_checkpointing", False) and m.training for m in pl_module.backbone.hf.modules()))

    trainer(callbacks=[Watch()]).fit(model, datamodule=data())
    assert seen == [True]


def test_adapters_on_a_moving_tower_have_no_reference():
    from locus_lightning.backbones.adapters import LoRA

    model = module(backbone=FAMILIES["llava"]("toy:llava", lora=LoRA(rank=2), train_vision=True), objective=GRPO(kl_coef=0.1))
    with pytest.raises(ConfigError, match="no reference model"):
        trainer().fit(model, datamodule=data())
    assert not model.backbone.loaded


def test_sixteen_bit_full_training_warns(caplog):
    trainer().fit(module(backbone=FAMILIES["llava"]("toy:llava", dtype="bfloat16")), datamodule=data())
    assert "small steps round away" in caplog.text


@pytest.mark.parametrize(("settings", "precision"), [({"dtype": "float16"}, "32-true"), ({}, "16-true")])
def test_float16_that_would_give_nan_is_refused(settings, precision):
    model = module(backbone=FAMILIES["llava"]("toy:llava", **settings))
    run = trainer()
    run.strategy.precision_plugin.precision = precision
    with pytest.raises(ConfigError, match="the first step would give NaN"):
        run.fit(model, datamodule=data())
    assert not model.backbone.loaded


def test_a_checkpoint_is_loaded_without_a_trainer(tmp_path, toy_folder):
    """``load_from_checkpoint``, as of any Lightning module."""
    backbone = FAMILIES["llava"](str(toy_folder("llava")), coordinates="pixels")
    model = module(backbone=backbone, rewards=[LengthReward()], optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    run = trainer(max_steps=1)
    run.fit(model, datamodule=data())
    run.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    again = LocusModule.load_from_checkpoint(
        tmp_path / "a.ckpt", weights_only=True, backbone=FAMILIES["llava"](str(toy_folder("llava")), coordinates="pixels")
    )
    moved = 0
    fresh = FAMILIES["llava"](str(toy_folder("llava")), coordinates="pixels")
    fresh.load()
    base = dict(fresh.named_parameters())
    own = dict(again.backbone.named_parameters())
    for name, parameter in model.backbone.named_parameters():
        if not name.startswith("reference."):
            assert torch.equal(own[name], parameter), name
            moved += int(not torch.equal(base[name], parameter))
    assert moved, "training has moved weights"


def test_a_run_whose_groups_never_differ_says_so_after_five_batches(caplog):
    caplog.set_level("INFO")
    trainer(max_steps=5).fit(module(rewards=[ConstantReward()]), datamodule=data(1))
    assert "nothing is learned" in caplog.text
    caplog.clear()
    trainer(max_steps=5).fit(module(rewards=[LengthReward()]), datamodule=data(1))
    assert "nothing is learned" not in caplog.text


def test_apples_gpu_is_refused_in_a_sentence(monkeypatch):
    run, model = trainer(), module()
    monkeypatch.setattr(type(run.strategy), "root_device", torch.device("mps"))
    model._trainer = run
    with pytest.raises(ConfigError, match=r"mps.*accelerator: cpu"):
        model._check_trainer()


@pytest.mark.parametrize(
    "settings",
    [{"surrogate": "sapo", "reduction": "sequence"}, {"surrogate": "gmpo", "reduction": "sequence_sum"}, {"covariance": "clip", "covariance_share": 0.1},
     {"aggregation": "normalize_then_sum"}, {"sampler_correction": "sequence_mask"}, {"entropy_coef": 0.5}],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_every_variant_trains(settings):
    model = module(rewards=[LengthReward()], objective=GRPO(kl_coef=0.0, **settings), num_iterations=2)
    fresh = FAMILIES["llava"]("toy:llava")
    torch.manual_seed(0)
    fresh.load()
    trainer(max_steps=3).fit(model, datamodule=data())
    assert any(not torch.equal(a, b) for a, b in zip(model.backbone.parameters(), fresh.parameters(), strict=True))
    assert all(torch.isfinite(p).all() for p in model.backbone.parameters())


def test_entropies_carry_a_gradient_where_the_objective_asks(make_backbone, samples):
    backbone = make_backbone("llava", dtype="float64")
    prompts, answers = backbone.encode(contents(backbone, samples)), [[backbone.tokenize_answer("[1, 2]")] for _ in samples]
    plain = backbone.logps(prompts, answers)[1]
    assert not plain.requires_grad
    backbone.entropy_gradient = True
    entropy = backbone.logps(prompts, answers)[1]
    assert torch.allclose(entropy, plain)
    head = backbone.hf.get_output_embeddings().weight
    (gradient,) = torch.autograd.grad(entropy.sum(), head)
    direction = torch.randn_like(head)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            head += step * direction
            values.append(backbone.logps(prompts, answers)[1].sum())
            head -= step * direction
    assert float((gradient * direction).sum()) == pytest.approx(float(values[0] - values[1]) / 2e-5, rel=1e-5)


def test_b_matrices_train_at_their_own_rate_under_any_schedule():
    from locus_lightning.backbones.adapters import LoRA

    model = module(backbone=FAMILIES["llava"]("toy:llava", lora=LoRA(rank=2, plus=16)), schedule="linear", warmup_ratio=0.0)
    run = trainer(max_steps=2)
    run.fit(model, datamodule=data(1))
    slow, fast = run.optimizers[0].param_groups
    assert (slow["initial_lr"], fast["initial_lr"]) == (0.1, 1.6)
    with pytest.raises(ConfigError, match="takes none"):
        trainer().fit(
            module(backbone=FAMILIES["llava"]("toy:llava", lora=LoRA(rank=2, plus=16)), optimizer=lambda p: MuonAdamW(p)),
            datamodule=data(1),
        )


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [("FSDPStrategy", None, r"fsdp.*pieces of the weights.*fsdp2"), ("ModelParallelStrategy", None, "pieces of the weights"),
     ("DeepSpeedStrategy", {"zero_optimization": {"stage": 3}}, "deepspeed_stage_3"), ("XLAStrategy", None, "has not been tried"),
     ("DeepSpeedStrategy", {"zero_optimization": {"stage": 2}}, None), ("DDPStrategy", None, None)],
)  # fmt: skip
def test_strategies_that_shard_weights_are_refused_before_they_load(kind, config, message):
    strategy = type(kind, (), {"config": config, "root_device": torch.device("cuda")})()
    holder = SimpleNamespace(trainer=SimpleNamespace(strategy=strategy))
    if message is None:
        return check_strategy(holder)
    with pytest.raises(ConfigError, match=message):
        check_strategy(holder)
    strategy.root_device = torch.device("cpu")
    with pytest.raises(
        ConfigError, match=r"CUDA GPUs alone" if kind == "DeepSpeedStrategy" and config["zero_optimization"]["stage"] < 3 else message
    ):
        check_strategy(holder)


def test_every_parameter_that_trains_is_read(make_backbone, family, samples):
    """DDP stops at parameters that get no gradient; a tower's pooling head and what lies behind the layer that is taken get none."""
    backbone = make_backbone(family, train_vision=True)
    prompts = backbone.encode(contents(backbone, samples[:1]))
    backbone.logps(prompts, [[backbone.tokenize_answer("[1, 2]")]])[0].sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    assert any("vision" in name or "visual" in name for name, p in backbone.named_parameters() if p.requires_grad)


def test_layers_behind_the_one_that_is_taken_are_not_trained(make_backbone):
    backbone = make_backbone("llava_onevision", train_vision=True)
    backbone.hf.config.vision_feature_layer = -2
    backbone.set_trainable()
    tower = {name: p.requires_grad for name, p in backbone.hf.model.vision_tower.named_parameters()}
    assert not any(trains for name, trains in tower.items() if "layers.1." in name or "post_layernorm" in name)
    assert all(trains for name, trains in tower.items() if "layers.0." in name)


def test_the_defaults_of_the_module_are_the_papers():
    model = LocusModule(FAMILIES["llava"]("toy:llava"))
    optimizer = model.optimizer_callable([torch.nn.Parameter(torch.zeros(2))])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-6, 1e-2)
    assert (model.group_size, model.num_iterations, model.warmup_ratio, model.schedule) == (8, 1, 0.05, "constant")
    assert (model.max_skipped_steps, model.max_failed_groups, model.reward_timeout) == (3, 0.1, 600.0)
    assert [(reward.name, reward.weight) for reward in model.rewards] == [("iou", 0.9), ("format", 0.1)]
