"""From scored groups to micro-batches whose loss weights are already final."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import Reduction, token_weights, zero_std_groups
from locus_lightning.rewards.base import Reward
from locus_lightning.types import Prompt, RolloutGroup


@dataclass(frozen=True)
class BatchPlan:
    """How a rollout batch of one process is used.

    Args:
        micro_batch: prompts of a forward and backward pass.
        accumulate: passes of an optimiser step.
        num_iterations: times every prompt is used.
    """

    micro_batch: int
    accumulate: int
    num_iterations: int

    def micro_steps(self, prompts: int) -> int:
        """Passes that a rollout batch of ``prompts`` takes."""
        return prompts // self.micro_batch * self.num_iterations

    def updates(self, prompts: int) -> int:
        """Optimiser steps of a rollout batch."""
        return self.micro_steps(prompts) // self.accumulate

    def check(self, prompts: int) -> None:
        """Refuse a rollout batch that does not divide.

        Raises:
            ConfigError: names the three numbers and what must hold.
        """
        step = self.micro_batch * self.accumulate
        if prompts % step:
            raise ConfigError(
                f"data.batch_size {prompts} is not a multiple of model.micro_batch_size {self.micro_batch} x trainer.accumulate_grad_batches "
                f"{self.accumulate} = {step} prompts an optimiser step; change one of the three."
            )

    def order(self, prompts: int) -> list[list[int]]:
        """Prompt indices of every pass: in order in the first iteration, then in a new random order each time (torch's generator)."""
        iterations = [list(range(prompts)), *(torch.randperm(prompts).tolist() for _ in range(self.num_iterations - 1))]
        flat = [i for indices in iterations for i in indices]
        return [flat[i : i + self.micro_batch] for i in range(0, len(flat), self.micro_batch)]


@dataclass(frozen=True)
class MicroBatch:
    """Whole groups for one forward and backward pass: B prompts of G completions.

    ``weights_BGT`` already hold the share of every token in its optimiser step, so the gradient does not depend on how the batch was cut.
    ``old_logps_BGT`` is None where the policy has not moved since sampling: the ratio is then 1 by construction. ``sampled_logps_BGT`` are the
    sampler's own log-probabilities, to be compared with recomputed ones.
    """

    prompts: tuple[Prompt, ...]
    completions: tuple[tuple[Tensor, ...], ...]
    advantages_BG: Tensor
    mask_BGT: Tensor
    weights_BGT: Tensor
    sampled_logps_BGT: Tensor
    old_logps_BGT: Tensor | None = None
    ref_logps_BGT: Tensor | None = None


@dataclass(frozen=True)
class RolloutBatch:
    """A scored rollout batch of one process: B prompts of G completions.

    Args:
        prompts: B prompts.
        completions: ids of every completion, ragged: B lists of G tensors (T,).
        advantages_BG: group-relative advantages.
        mask_BGT: tokens that count in the loss.
        sampled_logps_BGT: the sampler's log-probabilities.
        old_logps_BGT: the trainer's log-probabilities under the policy that sampled; None where the first update follows at once.
        ref_logps_BGT: log-probabilities under the reference model; None without a KL term.
    """

    prompts: Sequence[Prompt]
    completions: Sequence[Sequence[Tensor]]
    advantages_BG: Tensor
    mask_BGT: Tensor
    sampled_logps_BGT: Tensor
    old_logps_BGT: Tensor | None = None
    ref_logps_BGT: Tensor | None = None

    def cut(
        self, order: Sequence[Sequence[int]], totals: Sequence[float], accumulate: int, reduction: Reduction, max_tokens: int
    ) -> list[MicroBatch]:
        """The micro-batches of this rollout batch.

        Args:
            order: prompt indices of every pass (:meth:`BatchPlan.order`).
            totals: for every optimiser step the divisor of its weights, such that Lightning's division by accumulation and the averaging over
                processes come out right.
            accumulate: passes of an optimiser step.
            reduction: how tokens are averaged.
            max_tokens: see :func:`~locus_lightning.objectives.advantages.token_weights`.
        """
        weights_BGT = token_weights(self.mask_BGT, reduction, max_tokens)
        micro_batches = []
        for i, members in enumerate(order):
            rows = list(members)
            longest = max(1, max(len(ids) for b in rows for ids in self.completions[b]))
            micro_batches.append(
                MicroBatch(
                    prompts=tuple(self.prompts[b] for b in rows),
                    completions=tuple(tuple(self.completions[b]) for b in rows),
                    advantages_BG=self.advantages_BG[rows],
                    mask_BGT=self.mask_BGT[rows, :, :longest],
                    weights_BGT=weights_BGT[rows, :, :longest] / totals[i // accumulate],
                    sampled_logps_BGT=self.sampled_logps_BGT[rows, :, :longest],
                    old_logps_BGT=None if self.old_logps_BGT is None else self.old_logps_BGT[rows, :, :longest],
                    ref_logps_BGT=None if self.ref_logps_BGT is None else self.ref_logps_BGT[rows, :, :longest],
                )
            )
        return micro_batches


def completion_ids(groups: Sequence[RolloutGroup]) -> list[list[Tensor]]:
    """Ids of every completion, ragged: B lists of G tensors (T,)."""
    return [[c.generation.ids_T for c in group.completions if c.generation is not None] for group in groups]


def rewards_of(groups: Sequence[RolloutGroup]) -> Tensor:
    """The weighted sums of scores, (B, G) float32, on the CPU."""
    return torch.tensor([group.rewards for group in groups], dtype=torch.float32)


def scores_of(groups: Sequence[RolloutGroup], rewards: Sequence[Reward], device: torch.device) -> tuple[Tensor, Tensor]:
    """What every reward gave, (R, B, G) float32, and the rewards' weights (R,)."""
    scores_RBG = torch.tensor([[group.scores[reward.name] for group in groups] for reward in rewards], device=device)
    return scores_RBG, torch.tensor([reward.weight for reward in rewards], device=device)


def counted(groups: Sequence[RolloutGroup], mask_truncated: bool, filter_groups: bool) -> Tensor:
    """(B, G) bool, on the CPU: completions that count in the loss. Those of groups that could not be scored never do.

    Args:
        groups: scored.
        mask_truncated: leave out completions that were cut off.
        filter_groups: leave out groups whose rewards do not differ.
    """
    counted_BG = torch.tensor([[not group.failed] * len(group.completions) for group in groups])
    if mask_truncated:
        counted_BG &= ~torch.tensor([[c.truncated for c in group.completions] for group in groups])
    if filter_groups:
        counted_BG &= ~zero_std_groups(rewards_of(groups))[:, None]
    return counted_BG


def token_mask(groups: Sequence[RolloutGroup], counted_BG: Tensor) -> Tensor:
    """(B, G, T) bool: tokens of completions that count in the loss, end-of-sequence included."""
    lengths_BG = torch.tensor([[len(ids) for ids in row] for row in completion_ids(groups)], device=counted_BG.device)
    steps_T = torch.arange(int(lengths_BG.max()), device=counted_BG.device)
    return (steps_T < lengths_BG[..., None]) & counted_BG[..., None]


def sampled_logps(groups: Sequence[RolloutGroup]) -> Tensor:
    """The sampler's log-probabilities (B, G, T), float32, zero beyond a completion's end."""
    rows = [[c.generation.logps_T.float() for c in group.completions if c.generation is not None] for group in groups]
    longest = max(len(row) for group in rows for row in group)
    return torch.stack([torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in group]) for group in rows])


def sampler_gap(logps_BGT: Tensor, micro: MicroBatch) -> dict[str, Tensor]:
    """How far the sampler's log-probabilities are from those of the trainer at the same weights: mean and largest difference.

    Both are the same function of the same weights, so only rounding should remain; more means that ratios are wrong.
    """
    gap_BGT = (logps_BGT.float() - micro.sampled_logps_BGT).abs() * micro.mask_BGT
    return {"sampler_gap": gap_BGT.sum() / micro.mask_BGT.sum().clamp_min(1), "sampler_gap_max": gap_BGT.max()}


def pack_state(batches: Sequence[MicroBatch]) -> list[dict[str, Any]]:
    """Micro-batches as plain containers and CPU tensors, for a checkpoint. A frozen tower's features are kept instead of pixels; words and
    images before the template are not kept."""
    cpu = torch.device("cpu")
    moved = [to_device(replace(b, prompts=tuple(replace(p, vision=dict(p.vision), content=()) for p in b.prompts)), cpu) for b in batches]
    return [{**vars(b), "prompts": [dict(vars(p)) for p in b.prompts]} for b in moved]


def unpack_state(state: Sequence[dict[str, Any]]) -> list[MicroBatch]:
    """The inverse of :func:`pack_state`."""
    return [MicroBatch(**{**b, "prompts": tuple(Prompt(**p) for p in b["prompts"])}) for b in state]


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """A micro-batch from a checkpoint, on the model's device."""

    def move(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(device)
        if isinstance(x, dict):
            return {k: move(v) for k, v in x.items()}
        if isinstance(x, Prompt):
            return Prompt(**{k: move(v) for k, v in vars(x).items()})
        return tuple(move(v) for v in x) if isinstance(x, tuple) else x

    return MicroBatch(**{k: move(v) for k, v in vars(batch).items()})
