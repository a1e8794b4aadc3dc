"""LocusModule: reinforcement of a task by GRPO. ``collect`` and ``training_step`` are the algorithm."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from locus_lightning.backbones.base import Backbone
from locus_lightning.data.source import CueBatch
from locus_lightning.objectives.advantages import zero_std_groups
from locus_lightning.objectives.base import Objective
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.rewards.answer import AnswerReward
from locus_lightning.rewards.base import Reward
from locus_lightning.rewards.format import FormatReward
from locus_lightning.rewards.iou import IoUReward
from locus_lightning.rollout.base import RolloutEngine, SamplingParams
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.tasks.base import Task
from locus_lightning.training.base import TaskModule
from locus_lightning.training.checks import check_backbone, check_settings
from locus_lightning.training.geometry import derive_geometry, keep_to_budget, step_totals
from locus_lightning.training.reference import ReferenceSync
from locus_lightning.training.rollout_batch import (
    BatchPlan,
    MicroBatch,
    RolloutBatch,
    completion_ids,
    counted,
    pack_state,
    rewards_of,
    sampled_logps,
    sampler_gap,
    scores_of,
    to_device,
    token_mask,
    unpack_state,
)  # fmt: skip
from locus_lightning.training.rollout_metrics import rollout_metrics
from locus_lightning.training.scoring import Scorer
from locus_lightning.training.sharding import gathered
from locus_lightning.types import Prompt, RolloutGroup


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
        max_failed_groups: The share of the last 200 groups that a reward may fail to score: by raising, by a value that is no finite number,
            or by taking too long. Such groups are left out; beyond this share training stops.
        reference_sync: When the reference model follows the policy; null keeps it as it was (paper).
        reward_timeout: How many seconds a reward may take for one group; null waits for ever.
        max_skipped_steps: How many steps in a row may have a gradient that is not finite, before training stops. Such steps are skipped.
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
        max_skipped_steps: int = 3,
        reference_sync: ReferenceSync | None = None,
        max_failed_groups: float = 0.1,
        reward_timeout: float | None = 600.0,
    ) -> None:
        self.sampling = sampling or SamplingParams()
        validation = validation or SamplingParams(self.sampling.max_new_tokens, temperature=0.0)
        super().__init__(backbone, task, rollout or HFRollout(), validation, optimizer, schedule, warmup_ratio, max_skipped_steps)
        self.rewards: list[Reward] = self._default_rewards() if rewards is None else rewards
        self.objective: Objective = objective or GRPO()
        self.group_size, self.groups_per_step = group_size, groups_per_step
        self.micro_batch_size, self.num_iterations = micro_batch_size, num_iterations
        self.token_budget, self.mask_truncated_completions = token_budget, mask_truncated_completions
        self.filter_groups, self.resample = filter_groups, resample
        self.reference_sync = reference_sync
        self.max_failed_groups, self.reward_timeout = max_failed_groups, reward_timeout
        check_settings(self)
        self._scorer = Scorer(self.rewards, max_failed_groups, reward_timeout)
        self.buffer: deque[MicroBatch] = deque()
        self.groups: list[RolloutGroup] = []
        self._names: list[str] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._rollout_figures: dict[str, float] = {}
        self._update_figures: list[dict[str, Tensor]] = []

    def _default_rewards(self) -> list[Reward]:
        return [IoUReward() if self.task.answer_kind == "box" else AnswerReward(), FormatReward()]

    # ---- the algorithm ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, batch: Sequence[Any] | CueBatch) -> list[MicroBatch]:
        """A rollout batch: generate, score, compare within groups, and plan its use. No gradient."""
        samples, self.groups = list(batch), []  # the groups before hold the features of their images
        self._names = [str(sample.id) for sample in samples]
        self.tell_callbacks("on_rollout_start", samples)
        with self._timed("rollout"):
            prompts = self.encode(batch)
            with self.together():
                self.rollout.sync(self.backbone)
                groups = self.generate_groups(samples, prompts)
        with self._timed("score"):
            rewards_BG = rewards_of(groups).to(self.device)
            advantages_BG = self.objective.advantages_of(rewards_BG, *scores_of(groups, self.rewards, self.device))
            mask_BGT = token_mask(groups, counted(groups, self.mask_truncated_completions, self.filter_groups))
        plan, completions = self.plan(), completion_ids(groups)
        order = plan.order(len(prompts))
        with self._timed("reference"):
            moves = plan.updates(len(prompts)) > 1 or not self.rollout.exact
            old_logps_BGT = self._logps(prompts, completions) if moves else None
            ref_logps_BGT = self._logps(prompts, completions, reference=True) if self.objective.kl_coef > 0 else None
        sampled_BGT = sampled_logps(groups).to(self.device)
        self.watch_gap(old_logps_BGT, sampled_BGT, mask_BGT)
        rollout_batch = RolloutBatch(prompts, completions, advantages_BG, mask_BGT, sampled_BGT, old_logps_BGT, ref_logps_BGT)
        self.groups = groups
        self._rollout_figures = self.mean_over_ranks(rollout_metrics(groups, self.rewards, self.task, self.seconds))
        if self.trainer.is_global_zero:
            self._scorer.note_batch(groups, self._rollout_figures["reward/frac_reward_zero_std"] >= 1.0, self.global_step)
        self.tell_callbacks("on_rollout_end", groups)
        totals = step_totals(self, mask_BGT, order)
        return rollout_batch.cut(order, totals, plan.accumulate, self.objective.reduction, self.sampling.max_new_tokens)

    def training_step(self, batch: CueBatch, batch_idx: int) -> Tensor:
        """One micro-batch; a rollout batch is collected first whenever the last one is used up."""
        if batch:
            with gathered(self.backbone):
                self.buffer = deque(self.collect(batch))
            self._rollout_figures |= self.note_outcomes(batch, self.groups)
        micro = self.buffer.popleft()
        logps_BGT, entropy_BGT = self.backbone.logps(micro.prompts, micro.completions, temperature=self.sampling.temperature)
        old_logps_BGT = logps_BGT.detach() if micro.old_logps_BGT is None else micro.old_logps_BGT
        loss, figures = self.objective(
            logps_BGT, old_logps_BGT, micro.ref_logps_BGT, micro.advantages_BG, micro.weights_BGT, micro.mask_BGT,
            sampled_logps_BGT=micro.sampled_logps_BGT, entropy_BGT=entropy_BGT,
        )  # fmt: skip
        figures |= sampler_gap(old_logps_BGT, micro)
        figures["entropy"] = (entropy_BGT.detach() * micro.mask_BGT).sum() / micro.mask_BGT.sum().clamp_min(1)
        self._log_update({"loss": loss.detach(), **figures})
        return loss

    def generate_groups(self, samples: Sequence[Any], prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        """Rollouts with scores; groups whose rewards do not differ are generated anew, at most ``resample`` times."""
        groups = self._rollout(samples, prompts)
        for _ in range(self.resample if self.filter_groups else 0):
            flat = zero_std_groups(rewards_of(groups)).nonzero()[:, 0].tolist()
            if not flat:
                break
            for i, group in zip(flat, self._rollout([samples[i] for i in flat], [prompts[i] for i in flat]), strict=True):
                groups[i] = group
        return groups

    def _rollout(self, samples: Sequence[Any], prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        sampling = replace(self.sampling, min_new_tokens=self.sampling.max_new_tokens) if self.to_the_limit else self.sampling
        generated = self.generate_checked(prompts, self.group_size, sampling)
        groups = []
        for sample, prompt, generations in zip(samples, prompts, generated, strict=True):
            completions = tuple(self.complete(generation, sample, prompt) for generation in generations)
            groups.append(RolloutGroup(sample, prompt, completions))
        return self._scorer.score_all(groups, self.global_step)

    def _logps(self, prompts: Sequence[Prompt], completions: list[list[Tensor]], *, reference: bool = False) -> Tensor:
        """Log-probabilities of the whole rollout batch, micro-batch by micro-batch, padded to one width."""
        longest = max(len(ids) for row in completions for ids in row)
        rows = []
        for i in range(0, len(prompts), self.micro_batch_size):
            part = slice(i, i + self.micro_batch_size)
            logps_BGT, _ = self.backbone.logps(prompts[part], completions[part], temperature=self.sampling.temperature, reference=reference)
            rows.append(torch.nn.functional.pad(logps_BGT, (0, longest - logps_BGT.shape[-1])))
        return torch.cat(rows)

    # ---- batch geometry --------------------------------------------------------------------------------------------

    def plan(self) -> BatchPlan:
        """How a rollout batch is used."""
        return BatchPlan(self.micro_batch_size, self.trainer.accumulate_grad_batches, self.num_iterations)

    def micro_steps(self, batch_size: int) -> int:
        """Passes that a rollout batch takes: constant, and equal on every rank."""
        return self.plan().micro_steps(batch_size)

    def setup(self, stage: str) -> None:
        """See :meth:`TaskModule.setup`; also derives accumulation and batch size, and refuses numbers that do not divide."""
        super().setup(stage)
        check_backbone(self)
        if stage == "fit":
            derive_geometry(self)

    def configure_model(self) -> None:
        """Load weights, choose what trains, fix the reference."""
        super().configure_model()
        self.backbone.set_trainable()
        self.backbone.entropy_gradient = self.objective.entropy_coef != 0
        training = self._trainer is not None and self.trainer.training  # load_from_checkpoint has no trainer
        if training and self.objective.kl_coef > 0:
            self.backbone.freeze_reference(**({"moves": True} if self.reference_sync else {}))
        if training and self.token_budget:
            keep_to_budget(self, self.token_budget)
        self.shard()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, and let the reference model follow when it is time."""
        super().optimizer_step(*args, **kwargs)
        if self.reference_sync is not None and (self.global_step + 1) % self.reference_sync.every_n_steps == 0:
            self.backbone.move_reference(self.reference_sync.mixing)

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

    def _log_update(self, figures: dict[str, Tensor]) -> None:
        """Log the rollout batch's figures and the update's, averaged over the micro-batches of an optimiser step."""
        accumulate = self.trainer.accumulate_grad_batches
        self._update_figures = (self._update_figures if len(self._update_figures) < accumulate else []) + [figures]
        means = {f"update/{name}": torch.stack([f[name].float() for f in self._update_figures]).mean() for name in figures}
        self.log_dict({**self._rollout_figures, **means}, batch_size=1)
        headline = self.task.headline
        if f"rollout/{headline}" in self._rollout_figures:
            self.log(headline, self._rollout_figures[f"rollout/{headline}"], prog_bar=True, logger=False, batch_size=1)

    def step_samples(self) -> list[str]:
        """Names of the samples of the rollout batch at hand."""
        return self._names

    def note_rank_state(self) -> Callable[[], dict[str, Any]]:
        """The generators, the rollout batch half used, and its figures."""
        generators, buffer, figures = super().note_rank_state(), tuple(self.buffer), dict(self._rollout_figures)
        return lambda: {**generators(), "buffer": pack_state(buffer), "rollout_figures": figures}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """See :meth:`note_rank_state`."""
        super().load_rank_state(state)
        self.buffer = deque(to_device(micro, self.device) for micro in unpack_state(state["buffer"]))
        self._rollout_figures = dict(state.get("rollout_figures", {}))
