"""LocusModule: reinforcement with visual cues. ``collect`` and ``training_step`` are the algorithm."""

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
from locus_lightning.data.source import CueBatch, CueKey, spread
from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import constant_groups, weight_total
from locus_lightning.objectives.base import Objective
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.rewards.base import Reward
from locus_lightning.rewards.format import FormatReward
from locus_lightning.rewards.iou import IoUReward
from locus_lightning.rollout.base import RolloutEngine, Sampling
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.training import rollout_batch as collection
from locus_lightning.training.base import CueModule, log
from locus_lightning.training.rollout_batch import MicroBatch, Split
from locus_lightning.training.rollout_metrics import rollout_statistics
from locus_lightning.types import CueSample, Prompt, RolloutGroup

_LOOKED_AT = 32
"""Training samples whose prompts are measured against the token budget."""


class LocusModule(CueModule):
    """Local visual cue search by GRPO (LOCUS, arXiv 2606.16586).

    A rollout batch (``data.batch_size`` prompts a process) is collected, then used up in micro-batches of whole groups.
    One optimiser step sees ``micro_batch_size x trainer.accumulate_grad_batches`` prompts a process.

    Args:
        backbone: the model.
        rewards: their weighted sum is optimised; null: 0.9 IoU + 0.1 format (paper section 2).
        objective: advantages and loss; null: GRPO as the paper ran it.
        rollout: how completions are drawn.
        sampling: of the rollouts. Top-p and top-k are refused: their log-probabilities would not be the policy's.
        validation: of the held-out answers; null: greedy, as many tokens as ``sampling``.
        group_size: G, completions a prompt (paper: 8).
        micro_batch_size: prompts of one forward and backward pass.
        token_budget: most tokens of such a pass; null: any number. Where ``micro_batch_size`` groups at the length of the longest
            prompt would be more, fewer go through at a time and ``trainer.accumulate_grad_batches`` grows to match: the optimiser
            step stays the same.
        epochs: times a rollout batch is used.
        filter_groups: give no weight to groups whose rewards do not differ.
        resample: with ``filter_groups``, draw such groups anew, at most so many times (our choice; 0 as in the paper).
        truncated: completions cut off at ``max_new_tokens`` are kept in the loss (``keep``), or are only part of the group's mean (``mask``).
        optimizer: from parameters to an optimiser (paper: AdamW, 1e-6, weight decay 1e-2).
        schedule: of the learning rate after the warm-up.
        warmup_ratio: share of all steps over which the rate rises from 0 (paper: 0.05).
    """

    def __init__(
        self,
        backbone: Backbone,
        rewards: list[Reward] | None = None,
        objective: Objective | None = None,
        rollout: RolloutEngine | None = None,
        sampling: Sampling | None = None,
        validation: Sampling | None = None,
        group_size: int = 8,
        micro_batch_size: int = 1,
        token_budget: int | None = None,
        epochs: int = 1,
        filter_groups: bool = False,
        resample: int = 0,
        truncated: Literal["keep", "mask"] = "keep",
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-6, weight_decay=1e-2),
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_ratio: float = 0.05,
    ) -> None:
        self.sampling = sampling or Sampling()
        validation = validation or Sampling(self.sampling.max_new_tokens, temperature=0.0)
        super().__init__(backbone, rollout or HFRollout(), validation, optimizer, schedule, warmup_ratio)
        self.rewards: list[Reward] = rewards or [IoUReward(), FormatReward()]
        self.objective: Objective = objective or GRPO()
        self.group_size, self.micro_batch_size, self.epochs = group_size, micro_batch_size, epochs
        self.token_budget = token_budget
        self.filter_groups, self.resample, self.truncated = filter_groups, resample, truncated
        self._check_settings()
        self.buffer: deque[MicroBatch] = deque()
        self.groups: list[RolloutGroup] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._rollout_stats: dict[str, float] = {}
        self._update_stats: list[dict[str, Tensor]] = []

    # ---- the algorithm ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, samples: Sequence[CueSample]) -> list[MicroBatch]:
        """A rollout batch: draw, score, compare within groups, and plan its use. No gradient."""
        with self._timed("rollout"):
            prompts = self.backbone.encode(samples)
            groups = self.draw_groups(samples, prompts)
        with self._timed("score"):
            rewards_BG = _rewards(groups).to(self.device)
            advantages_BG = self.objective.advantages(rewards_BG)
            mask_BGT = collection.token_mask(groups, self._counted(groups, rewards_BG))
        split, completions = self._split(), collection.completion_ids(groups)
        plan = split.order(len(prompts))
        with self._timed("reference"):
            old_BGT = self._logps(prompts, completions) if split.updates(len(prompts)) > 1 else None
            reference_BGT = self._logps(prompts, completions, reference=True) if self.objective.kl > 0 else None
        self.groups = groups
        self._rollout_stats = self.mean_over_ranks(rollout_statistics(groups, self.rewards, self.seconds))
        return collection.micro_batches(
            prompts, completions, collection.sampled_logps(groups).to(self.device), advantages_BG, mask_BGT, plan,
            self._totals(mask_BGT, plan), self.objective.reduction, self.sampling.max_new_tokens, split.accumulate, old_BGT, reference_BGT,
        )  # fmt: skip

    def training_step(self, batch: CueBatch, batch_idx: int) -> Tensor:
        """One micro-batch; a rollout batch is collected first whenever the last one is used up."""
        if batch:
            self.buffer = deque(self.collect(list(batch)))
        micro = self.buffer.popleft()
        logps_BGT, entropy_BGT = self.backbone.logps(micro.prompts, micro.completions, temperature=self.sampling.temperature)
        old_BGT = logps_BGT.detach() if micro.old_BGT is None else micro.old_BGT
        loss, stats = self.objective(logps_BGT, old_BGT, micro.reference_BGT, micro.advantages_BG, micro.weights_BGT, micro.mask_BGT)
        stats |= collection.sampler_gap(old_BGT, micro)
        stats["entropy"] = (entropy_BGT * micro.mask_BGT).sum() / micro.mask_BGT.sum().clamp_min(1)
        self._note({"loss": loss.detach(), **stats})
        return loss

    # ---- its parts -------------------------------------------------------------------------------------------------

    def draw_groups(self, samples: Sequence[CueSample], prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        """Rollouts with scores; groups without contrast are drawn anew, at most ``resample`` times."""
        groups = self._rollout(samples, prompts)
        for _ in range(self.resample if self.filter_groups else 0):
            flat = constant_groups(_rewards(groups)).nonzero()[:, 0].tolist()
            if not flat:
                break
            for i, group in zip(flat, self._rollout([samples[i] for i in flat], [prompts[i] for i in flat]), strict=True):
                groups[i] = group
        if self.filter_groups and bool(constant_groups(_rewards(groups)).all()):
            log.warning("step %d: no group has rewards that differ, so this rollout batch teaches nothing.", self.global_step)
        return groups

    def _rollout(self, samples: Sequence[CueSample], prompts: Sequence[Prompt]) -> list[RolloutGroup]:
        drawn = self.rollout.generate(self.backbone, prompts, self.group_size, self.sampling)
        groups = []
        for sample, prompt, generations in zip(samples, prompts, drawn, strict=True):
            completions = tuple(self.backbone.read(generation, sample) for generation in generations)
            groups.append(self.score(RolloutGroup(sample, prompt, completions)))
        return groups

    def score(self, group: RolloutGroup) -> RolloutGroup:
        """Every reward's scores, and their weighted sum."""
        scores = {reward.name: tuple(reward.score_group(group.completions, group.sample)) for reward in self.rewards}
        weights = {reward.name: reward.weight for reward in self.rewards}
        total = tuple(sum(weights[name] * row[g] for name, row in scores.items()) for g in range(len(group.completions)))
        return replace(group, scores=scores, rewards=total)

    def _counted(self, groups: Sequence[RolloutGroup], rewards_BG: Tensor) -> Tensor:
        """(B, G) bool: completions that weigh in the loss."""
        counted_BG = torch.ones_like(rewards_BG, dtype=torch.bool)
        if self.truncated == "mask":
            counted_BG &= ~torch.tensor([[c.truncated for c in g.completions] for g in groups], device=rewards_BG.device)
        if self.filter_groups:
            counted_BG &= ~constant_groups(rewards_BG)[:, None]
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

    def _totals(self, mask_BGT: Tensor, plan: Sequence[Sequence[int]]) -> list[float]:
        """For every optimiser step: the weights' divisor over all ranks, over (accumulation x ranks), which the trainer averages by."""
        a = self._split().accumulate
        steps = [[b for members in plan[i : i + a] for b in members] for i in range(0, len(plan), a)]
        totals = torch.stack([weight_total(mask_BGT[members], self.objective.reduction) for members in steps])
        totals = self.trainer.strategy.reduce(totals, reduce_op="sum")  # type: ignore[union-attr,assignment]
        return (totals.clamp_min(1.0) / (a * self.trainer.world_size)).tolist()

    def _split(self) -> Split:
        return Split(self.micro_batch_size, self.trainer.accumulate_grad_batches, self.epochs)

    def micro_steps(self, batch_size: int) -> int:
        """Micro-steps that a rollout batch takes: constant, and equal on every rank."""
        return self._split().steps(batch_size)

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
        if min(self.micro_batch_size, self.epochs) < 1 or self.resample < 0:
            raise ConfigError("model.micro_batch_size and model.epochs are at least 1, model.resample at least 0.")
        if self.token_budget is not None and self.token_budget < 1:
            raise ConfigError(f"model.token_budget is {self.token_budget}; it is at least 1 token, or null.")
        if self.resample and not self.filter_groups:
            raise ConfigError(f"model.resample is {self.resample} but model.filter_groups is false; set filter_groups: true.")
        double = [name for name, count in Counter(reward.name for reward in self.rewards).items() if count > 1]
        if double:
            raise ConfigError(f"model.rewards holds {double[0]!r} twice; every reward is logged by its own name.")

    def setup(self, stage: str) -> None:
        """See :meth:`CueModule.setup`; also refuses batch sizes that do not divide."""
        super().setup(stage)
        self._check_backbone()
        if stage == "fit" and self.trainer.datamodule is not None:  # type: ignore[attr-defined]
            self._split().check(self.trainer.datamodule.batch_size)  # type: ignore[attr-defined]

    def _check_backbone(self) -> None:
        backbone = self.backbone
        if self.objective.kl > 0 and getattr(backbone, "lora", None) and getattr(backbone, "train_vision", False):
            raise ConfigError(
                "backbone.lora with backbone.train_vision has no reference model for objective.kl: with the adapter off the tower has "
                "still moved; set objective.kl to 0, or train_vision to false."
            )

    def configure_model(self) -> None:
        """Load weights, choose what trains, fix the reference."""
        super().configure_model()
        self.backbone.set_trainable()
        if self.objective.kl > 0 and self.trainer.training:
            self.backbone.freeze_reference()
        if self.token_budget and self.trainer.training:
            self._keep_to_budget(self.token_budget)

    def _keep_to_budget(self, budget: int) -> None:
        """Lower the micro-batch, and raise the trainer's accumulation, until the longest prompts seen keep to the budget."""
        data = self.trainer.datamodule.datasets["train"]  # type: ignore[attr-defined]
        looked_at = spread(len(data), _LOOKED_AT)
        longest = max(self.backbone.prompt_length(data[CueKey(0, i)]) for i in looked_at)
        group = self.backbone.row_tokens(longest, self.group_size, self.sampling.max_new_tokens)
        fits = max(1, budget // group)
        micro = max(n for n in range(1, self.micro_batch_size + 1) if self.micro_batch_size % n == 0 and n <= fits)
        note = f"token budget {budget:,}: the longest of {len(looked_at)} prompts has {longest:,} tokens, its group {group:,}; "
        if group > budget:
            log.warning("%sone group is over the budget: lower group_size, max_new_tokens or the images' resolution.", note)
        self.trainer.accumulate_grad_batches *= self.micro_batch_size // micro
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
        """See :meth:`CueModule.on_train_batch_start`; also starts the clock of the update."""
        super().on_train_batch_start(batch, batch_idx)
        if batch:
            self.seconds.clear()
        self._started = perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """All of a step that was not collection is the update."""
        spent = sum(self.seconds[phase] for phase in ("rollout", "score", "reference")) if batch else 0.0
        self.seconds["update"] += perf_counter() - self._started - spent

    def _note(self, stats: dict[str, Tensor]) -> None:
        """Log the rollout batch's figures and the update's, averaged over the micro-batches of an optimiser step."""
        accumulate = self.trainer.accumulate_grad_batches
        self._update_stats = (self._update_stats if len(self._update_stats) < accumulate else []) + [stats]
        means = {f"update/{name}": torch.stack([s[name].float() for s in self._update_stats]).mean() for name in stats}
        self.log_dict({**self._rollout_stats, **means}, batch_size=1)
        self.log("iou", self._rollout_stats.get("rollout/iou", 0.0), prog_bar=True, logger=False, batch_size=1)

    def rank_state(self) -> dict[str, Any]:
        """The generators, and the rollout batch half used."""
        return {**super().rank_state(), "buffer": collection.pack_state(self.buffer)}

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """See :meth:`rank_state`."""
        super().load_rank_state(state)
        self.buffer = deque(collection.to_device(micro, self.device) for micro in collection.unpack_state(state["buffer"]))


def _rewards(groups: Sequence[RolloutGroup]) -> Tensor:
    """(B, G) float32."""
    return torch.tensor([group.rewards for group in groups], dtype=torch.float32)
