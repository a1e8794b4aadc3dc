"""LocusModule: reinforcement of a task by GRPO. ``collect`` and ``training_step`` are the algorithm."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from locus_lightning.backbones.base import Backbone
from locus_lightning.data.source import CueBatch, CueKey, evenly_spaced
from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import weight_total, zero_std_groups
from locus_lightning.objectives.base import Objective
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.rewards.answer import AnswerReward
from locus_lightning.rewards.base import Reward, checked_scores
from locus_lightning.rewards.format import FormatReward
from locus_lightning.rewards.iou import IoUReward
from locus_lightning.rollout.base import RolloutEngine, SamplingParams, generate_checked
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.tasks.base import Task, check_fit
from locus_lightning.training.base import TaskModule, log
from locus_lightning.training.rollout_batch import (
    BatchPlan,
    MicroBatch,
    RolloutBatch,
    completion_ids,
    pack_state,
    sampled_logps,
    sampler_gap,
    to_device,
    token_mask,
    unpack_state,
)  # fmt: skip
from locus_lightning.training.rollout_metrics import rollout_metrics
from locus_lightning.types import Prompt, RolloutGroup

_PROBED = 32
"""Training samples whose prompts are measured against the token budget."""


class LocusModule(TaskModule):
    """Reinforcement of a visual task by GRPO; with the default task it is LOCUS (arXiv 2606.16586).

    A rollout batch (``data.batch_size`` prompts on each process) is collected, then used in micro-batches of whole groups.

    Args:
        backbone: The model that is trained.
        task: What is asked and what is right; null is cue search.
        rewards: The rewards whose weighted sum is optimised. Null is 0.9 IoU + 0.1 format (paper section 2), or 0.9 of the task's own
            score where an answer is not one box.
        objective: How advantages and loss are computed; null is GRPO as the paper ran it.
        rollout: The engine that generates completions; null is ``HFRollout``.
        sampling: How rollouts are sampled. Top-p and top-k are refused, because their log-probabilities would not be the policy's.
        validation: How held-out answers are sampled; null is greedy, with as many tokens as ``sampling`` has.
        group_size: G, the number of completions a prompt (paper: 8).
        groups_per_step: The number of prompts of an optimiser step, all processes together. Accumulation and ``data.batch_size`` follow
            from it. Null is ``micro_batch_size`` x ``trainer.accumulate_grad_batches`` on each process.
        micro_batch_size: The number of prompts of one forward and backward pass.
        token_budget: The largest number of tokens of such a pass; null is no limit. Where ``micro_batch_size`` groups at the length of
            the longest prompt would exceed it, fewer groups go through at a time and an optimiser step takes more passes. The step
            itself stays the same.
        num_iterations: How many times a rollout batch is used.
        filter_groups: Whether groups whose rewards do not differ get no weight.
        resample: With ``filter_groups``, such groups are generated again at most this many times (our choice; 0 as in the paper).
        mask_truncated_completions: Whether completions that were cut off at ``max_new_tokens`` are left out of the loss. They stay part
            of their group's mean.
        optimizer: It gets the parameters that train and gives an optimiser (paper: AdamW, 1e-6, weight decay 1e-2).
        schedule: How the learning rate changes after the warm-up: ``constant``, ``linear`` to 0, or ``cosine`` to 0.
        warmup_ratio: The share of all steps over which the rate rises from 0 (paper: 0.05).
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task | None = None,
        rewards: list[Reward] | None = None,
        objective: Objective | None = None,
        rollout: RolloutEngine | None = None,
        sampling: SamplingParams | None = None,
        validation: SamplingParams | None = None,
        group_size: int = 8,
        groups_per_step: int | None = None,
        micro_batch_size: int = 1,
        token_budget: int | None = None,
        num_iterations: int = 1,
        filter_groups: bool = False,
        resample: int = 0,
        mask_truncated_completions: bool = False,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=1e-2),
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_ratio: float = 0.05,
    ) -> None:
        self.sampling = sampling or SamplingParams()
        validation = validation or SamplingParams(self.sampling.max_new_tokens, temperature=0.0)
        super().__init__(backbone, task, rollout or HFRollout(), validation, optimizer, schedule, warmup_ratio)
        self.rewards: list[Reward] = self._default_rewards() if rewards is None else rewards
        self.objective: Objective = objective or GRPO()
        self.group_size, self.groups_per_step = group_size, groups_per_step
        self.micro_batch_size, self.num_iterations = micro_batch_size, num_iterations
        self.token_budget, self.mask_truncated_completions = token_budget, mask_truncated_completions
        self.filter_groups, self.resample = filter_groups, resample
        self._check_settings()
        self.buffer: deque[MicroBatch] = deque()
        self.groups: list[RolloutGroup] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._to_the_limit = False
        self._rollout_figures: dict[str, float] = {}
        self._update_figures: list[dict[str, Tensor]] = []

    def _default_rewards(self) -> list[Reward]:
        return [IoUReward() if self.task.answer_kind == "box" else AnswerReward(), FormatReward()]

    # ---- the algorithm ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, samples: Sequence[Any]) -> list[MicroBatch]:
        """A rollout batch: generate, score, compare within groups, and plan its use. No gradient."""
        self._tell("on_rollout_start", samples)
        with self._timed("rollout"):
            self.rollout.sync(self.backbone)
            prompts = self.encode(samples)
            groups = self.generate_groups(samples, prompts)
        with self._timed("score"):
            rewards_BG = _rewards(groups).to(self.device)
            advantages_BG = self.objective.advantages(rewards_BG)
            mask_BGT = token_mask(groups, self._counted(groups, rewards_BG))
        plan, completions = self._plan(), completion_ids(groups)
        order = plan.order(len(prompts))
        with self._timed("reference"):
            moves = plan.updates(len(prompts)) > 1 or not self.rollout.exact
            old_logps_BGT = self._logps(prompts, completions) if moves else None
            ref_logps_BGT = self._logps(prompts, completions, reference=True) if self.objective.kl_coef > 0 else None
        batch = RolloutBatch(
            prompts, completions, advantages_BG, mask_BGT, sampled_logps(groups).to(self.device), old_logps_BGT, ref_logps_BGT
        )
        self.groups = groups
        self._rollout_figures = self.mean_over_ranks(rollout_metrics(groups, self.rewards, self.task, self.seconds))
        self._tell("on_rollout_end", groups)
        return batch.cut(order, self._totals(mask_BGT, order), plan.accumulate, self.objective.reduction, self.sampling.max_new_tokens)

    def training_step(self, batch: CueBatch, batch_idx: int) -> Tensor:
        """One micro-batch; a rollout batch is collected first whenever the last one is used up."""
        if batch:
            self.buffer = deque(self.collect(list(batch)))
        micro = self.buffer.popleft()
        logps_BGT, entropy_BGT = self.backbone.logps(micro.prompts, micro.completions, temperature=self.sampling.temperature)
        old_logps_BGT = logps_BGT.detach() if micro.old_logps_BGT is None else micro.old_logps_BGT
        loss, figures = self.objective(
            logps_BGT, old_logps_BGT, micro.ref_logps_BGT, micro.advantages_BG, micro.weights_BGT, micro.mask_BGT
        )
        figures |= sampler_gap(old_logps_BGT, micro)
        figures["entropy"] = (entropy_BGT * micro.mask_BGT).sum() / micro.mask_BGT.sum().clamp_min(1)
        self._log_update({"loss": loss.detach(), **figures})
        return loss

    # ---- its parts -------------------------------------------------------------------------------------------------

    def generate_groups(self, samples: Sequence[Any], prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        """Rollouts with scores; groups whose rewards do not differ are generated anew, at most ``resample`` times."""
        groups = self._rollout(samples, prompts)
        for _ in range(self.resample if self.filter_groups else 0):
            flat = zero_std_groups(_rewards(groups)).nonzero()[:, 0].tolist()
            if not flat:
                break
            for i, group in zip(flat, self._rollout([samples[i] for i in flat], [prompts[i] for i in flat]), strict=True):
                groups[i] = group
        if self.filter_groups and bool(zero_std_groups(_rewards(groups)).all()):
            log.warning("step %d: no group has rewards that differ, so this rollout batch teaches nothing.", self.global_step)
        return groups

    def _rollout(self, samples: Sequence[Any], prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        sampling = replace(self.sampling, min_new_tokens=self.sampling.max_new_tokens) if self._to_the_limit else self.sampling
        made = generate_checked(self.rollout, self.backbone, prompts, self.group_size, sampling)
        groups = []
        for sample, prompt, generations in zip(samples, prompts, made, strict=True):
            completions = tuple(self.complete(generation, sample, prompt) for generation in generations)
            groups.append(self.score(RolloutGroup(sample, prompt, completions)))
        return groups

    def run_to_the_limit(self) -> None:
        """Let every completion run to ``max_new_tokens``, to measure what a step costs at most. Training this way would be wrong: the
        policy could not end its answers."""
        self._to_the_limit = True

    def score(self, group: RolloutGroup) -> RolloutGroup:
        """Every reward's scores, and their weighted sum."""
        scores = {reward.name: checked_scores(reward, group.completions, group.sample) for reward in self.rewards}
        weights = {reward.name: reward.weight for reward in self.rewards}
        total = tuple(sum(weights[name] * row[g] for name, row in scores.items()) for g in range(len(group.completions)))
        return replace(group, scores=scores, rewards=total)

    def _counted(self, groups: Sequence[RolloutGroup], rewards_BG: Tensor) -> Tensor:
        """(B, G) bool: completions that count in the loss."""
        counted_BG = torch.ones_like(rewards_BG, dtype=torch.bool)
        if self.mask_truncated_completions:
            counted_BG &= ~torch.tensor([[c.truncated for c in g.completions] for g in groups], device=rewards_BG.device)
        if self.filter_groups:
            counted_BG &= ~zero_std_groups(rewards_BG)[:, None]
        return counted_BG

    def _logps(self, prompts: Sequence[Prompt], completions: list[list[Tensor]], *, reference: bool = False) -> Tensor:
        """Log-probabilities of the whole rollout batch, micro-batch by micro-batch, padded to one width."""
        longest = max(len(ids) for row in completions for ids in row)
        rows = []
        for i in range(0, len(prompts), self.micro_batch_size):
            part = slice(i, i + self.micro_batch_size)
            logps_BGT, _ = self.backbone.logps(prompts[part], completions[part], temperature=self.sampling.temperature, reference=reference)
            rows.append(torch.nn.functional.pad(logps_BGT, (0, longest - logps_BGT.shape[-1])))
        return torch.cat(rows)

    def _totals(self, mask_BGT: Tensor, order: Sequence[Sequence[int]]) -> list[float]:
        """For every optimiser step: the weights' divisor over all ranks, over (accumulation x ranks), which the trainer averages by."""
        a = self.trainer.accumulate_grad_batches
        steps = [[b for members in order[i : i + a] for b in members] for i in range(0, len(order), a)]
        totals = torch.stack([weight_total(mask_BGT[members], self.objective.reduction) for members in steps])
        totals = self.trainer.strategy.reduce(totals, reduce_op="sum")  # type: ignore[union-attr,assignment]
        return (totals.clamp_min(1.0) / (a * self.trainer.world_size)).tolist()

    # ---- batch geometry --------------------------------------------------------------------------------------------

    def _plan(self) -> BatchPlan:
        return BatchPlan(self.micro_batch_size, self.trainer.accumulate_grad_batches, self.num_iterations)

    def micro_steps(self, batch_size: int) -> int:
        """Passes that a rollout batch takes: constant, and equal on every rank."""
        return self._plan().micro_steps(batch_size)

    def setup(self, stage: str) -> None:
        """See :meth:`TaskModule.setup`; also derives accumulation and batch size, and refuses numbers that do not divide."""
        super().setup(stage)
        self._check_backbone()
        if stage == "fit":
            self._derive_geometry()

    def _derive_geometry(self) -> None:
        _, stated, _ = self._stated_geometry()
        data, world = self.trainer.datamodule, self.trainer.world_size  # type: ignore[attr-defined]
        if self.groups_per_step is not None:
            share = world * self.micro_batch_size
            if self.groups_per_step < 1 or self.groups_per_step % share:
                raise ConfigError(
                    f"model.groups_per_step is {self.groups_per_step}; it is a multiple of {world} process(es) x model.micro_batch_size "
                    f"{self.micro_batch_size} = {share}."
                )
            passes = self.groups_per_step // share
            if stated not in (1, passes):
                raise ConfigError(
                    f"model.groups_per_step {self.groups_per_step} takes {passes} passes an optimiser step, and trainer.accumulate_grad_batches "
                    f"says {stated}; state one of the two."
                )
            self.use_accumulation(passes)
        if data is None:
            return
        plan = self._plan()
        if data.batch_size is None:
            data.batch_size = plan.micro_batch * plan.accumulate
        plan.check(data.batch_size)
        log.info(
            "%d prompts an optimiser step (%d process(es) x %d passes of %d); a rollout batch of %d prompts serves %d step(s).",
            world * plan.accumulate * plan.micro_batch, world, plan.accumulate, plan.micro_batch, world * data.batch_size,
            plan.updates(data.batch_size),
        )  # fmt: skip

    # ---- settings --------------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        if self.group_size < 2:
            raise ConfigError(f"model.group_size is {self.group_size}: a group-relative advantage needs at least 2 completions a prompt.")
        if self.sampling.top_p < 1 or self.sampling.top_k > 0 or self.sampling.min_new_tokens > 0:
            raise ConfigError(
                f"model.sampling has top_p {self.sampling.top_p}, top_k {self.sampling.top_k} and min_new_tokens "
                f"{self.sampling.min_new_tokens}: with importance ratios the sampled distribution must be the policy's own; set top_p 1.0, "
                "top_k 0 and min_new_tokens 0."
            )
        if self.sampling.temperature <= 0:
            raise ConfigError("model.sampling.temperature is 0: greedy completions of a group are all alike; set it above 0.")
        if min(self.micro_batch_size, self.num_iterations) < 1 or self.resample < 0:
            raise ConfigError(
                f"model.micro_batch_size is {self.micro_batch_size} and model.num_iterations {self.num_iterations} (at least 1 each), "
                f"model.resample {self.resample} (at least 0)."
            )
        if self.token_budget is not None and self.token_budget < 1:
            raise ConfigError(f"model.token_budget is {self.token_budget}; it is at least 1 token, or null.")
        if self.resample and not self.filter_groups:
            raise ConfigError(f"model.resample is {self.resample} but model.filter_groups is false; set filter_groups: true.")
        self._check_rewards()

    def _check_rewards(self) -> None:
        names = Counter(reward.name for reward in self.rewards)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ConfigError(
                f"model.rewards holds {twice[0]!r} twice; every reward is logged by its name: give one of them another `name`."
            )
        if "total" in names:
            raise ConfigError("model.rewards holds a reward called 'total', which is the name of the weighted sum; give it another `name`.")
        if not any(reward.weight for reward in self.rewards):
            raise ConfigError("model.rewards holds no reward with a weight other than 0, so nothing would be optimised; add one.")
        check_fit(self.task, self.rewards)

    def _check_backbone(self) -> None:
        if self.objective.kl_coef > 0 and self.backbone.adapter_rank and self.backbone.train_vision:
            raise ConfigError(
                "backbone.lora with backbone.train_vision has no reference model for objective.kl_coef: with the adapter off the tower has "
                "still moved; set objective.kl_coef to 0, or train_vision to false."
            )

    def configure_model(self) -> None:
        """Load weights, choose what trains, fix the reference."""
        super().configure_model()
        self.backbone.set_trainable()
        if self.objective.kl_coef > 0 and self.trainer.training:
            self.backbone.freeze_reference()
        if self.token_budget and self.trainer.training:
            self._keep_to_budget(self.token_budget)

    def _keep_to_budget(self, budget: int) -> None:
        """Lower the micro-batch, and take more passes a step, until the longest prompts that were probed keep to the budget."""
        data = self.trainer.datamodule.task_dataset("train", self.task)  # type: ignore[attr-defined]
        probed = evenly_spaced(len(data), _PROBED)
        with torch.device("cpu"):  # Lightning may have set another default device
            contents = self.contents([data[CueKey(0, i)] for i in probed])
        longest = max(self.backbone.prompt_length(content) for content in contents)
        group = self.backbone.row_tokens(longest, self.group_size, self.sampling.max_new_tokens)
        fits = max(1, budget // group)
        micro = max(n for n in range(1, self.micro_batch_size + 1) if self.micro_batch_size % n == 0 and n <= fits)
        note = f"token budget {budget:,}: the longest of {len(probed)} prompts has {longest:,} tokens, its group {group:,}; "
        if group > budget:
            log.warning("%sone group is over the budget: lower group_size, max_new_tokens or the images' resolution.", note)
        self.use_accumulation(self.trainer.accumulate_grad_batches * (self.micro_batch_size // micro))
        self.micro_batch_size = micro
        log.info("%s%d prompts a pass, %d passes an optimiser step.", note, micro, self.trainer.accumulate_grad_batches)

    # ---- bookkeeping -----------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase] += perf_counter() - start

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """See :meth:`TaskModule.on_train_batch_start`; also starts the clock of the update."""
        super().on_train_batch_start(batch, batch_idx)
        if batch:
            self.seconds.clear()
        self._started = perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """All of a step that was not collection is the update."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        spent = sum(self.seconds[phase] for phase in ("rollout", "score", "reference")) if batch else 0.0
        self.seconds["update"] += perf_counter() - self._started - spent

    def _tell(self, hook: str, subject: Sequence[Any]) -> None:
        """Call a hook of :class:`TrainingCallback` on every callback that has it."""
        for callback in self.trainer.callbacks if self._trainer is not None else ():  # type: ignore[attr-defined]
            told = getattr(callback, hook, None)
            if told is not None:
                told(self.trainer, self, subject)

    def _log_update(self, figures: dict[str, Tensor]) -> None:
        """Log the rollout batch's figures and the update's, averaged over the micro-batches of an optimiser step."""
        accumulate = self.trainer.accumulate_grad_batches
        self._update_figures = (self._update_figures if len(self._update_figures) < accumulate else []) + [figures]
        means = {f"update/{name}": torch.stack([f[name].float() for f in self._update_figures]).mean() for name in figures}
        self.log_dict({**self._rollout_figures, **means}, batch_size=1)
        headline = self.task.headline
        if f"rollout/{headline}" in self._rollout_figures:
            self.log(headline, self._rollout_figures[f"rollout/{headline}"], prog_bar=True, logger=False, batch_size=1)

    def rank_state(self) -> dict[str, Any]:
        """The generators, the rollout batch half used, and its figures."""
        return {**super().rank_state(), "buffer": pack_state(self.buffer), "rollout_figures": dict(self._rollout_figures)}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """See :meth:`rank_state`."""
        super().load_rank_state(state)
        self.buffer = deque(to_device(micro, self.device) for micro in unpack_state(state["buffer"]))
        self._rollout_figures = dict(state.get("rollout_figures", {}))


def _rewards(groups: Sequence[RolloutGroup]) -> Tensor:
    """(B, G) float32."""
    return torch.tensor([group.rewards for group in groups], dtype=torch.float32)
