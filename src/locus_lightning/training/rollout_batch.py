"""From scored groups to micro-batches whose loss weights are already final."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import Reduction, token_weights
from locus_lightning.types import Prompt, RolloutGroup


@dataclass(frozen=True)
class MicroBatch:
    """Whole groups for one forward and backward pass: B prompts of G completions.

    ``weights_BGT`` already hold the share of every token in its optimiser step, so the gradient does not depend on
    how the batch was split. ``old_BGT`` is None where the policy has not moved since sampling: the ratio is then 1 by
    construction. ``sampled_BGT`` are the sampler's own log-probabilities, to be compared with recomputed ones.
    """

    prompts: tuple[Prompt, ...]
    completions: tuple[tuple[Tensor, ...], ...]
    advantages_BG: Tensor
    mask_BGT: Tensor
    weights_BGT: Tensor
    sampled_BGT: Tensor
    old_BGT: Tensor | None = None
    reference_BGT: Tensor | None = None


@dataclass(frozen=True)
class Split:
    """How a rollout batch is used up.

    Args:
        micro: prompts of a micro-batch.
        accumulate: micro-batches of an optimiser step.
        epochs: times every prompt is used.
    """

    micro: int
    accumulate: int
    epochs: int

    def steps(self, prompts: int) -> int:
        """Micro-steps of a rollout batch of ``prompts``."""
        return prompts // self.micro * self.epochs

    def updates(self, prompts: int) -> int:
        """Optimiser steps of a rollout batch."""
        return self.steps(prompts) // self.accumulate

    def check(self, prompts: int) -> None:
        """Refuse a rollout batch that does not divide.

        Raises:
            ConfigError: names the three numbers and what must hold.
        """
        step = self.micro * self.accumulate
        if prompts % step:
            raise ConfigError(
                f"data.batch_size {prompts} is not a multiple of model.micro_batch_size {self.micro} x trainer.accumulate_grad_batches "
                f"{self.accumulate} = {step} prompts an optimiser step; change one of the three."
            )

    def order(self, prompts: int) -> list[list[int]]:
        """Prompt indices of every micro-step: in order first, then in a new random order each epoch (torch's generator)."""
        passes = [list(range(prompts)), *(torch.randperm(prompts).tolist() for _ in range(self.epochs - 1))]
        flat = [i for once in passes for i in once]
        return [flat[i : i + self.micro] for i in range(0, len(flat), self.micro)]


def completion_ids(groups: Sequence[RolloutGroup]) -> list[list[Tensor]]:
    """Ids of every completion, ragged: B lists of G tensors (T,)."""
    return [[c.generation.ids_T for c in group.completions if c.generation is not None] for group in groups]


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


def micro_batches(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Tensor]],
    sampled_BGT: Tensor,
    advantages_BG: Tensor,
    mask_BGT: Tensor,
    plan: Sequence[Sequence[int]],
    totals: Sequence[float],
    reduction: Reduction,
    max_tokens: int,
    accumulate: int,
    old_BGT: Tensor | None,
    reference_BGT: Tensor | None,
) -> list[MicroBatch]:
    """Cut a rollout batch by ``plan``. ``totals``: for every optimiser step the divisor of its weights, such that
    Lightning's division by accumulation and the averaging over ranks come out right."""
    weights_BGT = token_weights(mask_BGT, reduction, max_tokens)
    made = []
    for i, members in enumerate(plan):
        longest = max(1, max(len(ids) for b in members for ids in completions[b]))
        made.append(
            MicroBatch(
                tuple(prompts[b] for b in members),
                tuple(tuple(completions[b]) for b in members),
                advantages_BG[list(members)],
                mask_BGT[list(members), :, :longest],
                weights_BGT[list(members), :, :longest] / totals[i // accumulate],
                sampled_BGT[list(members), :, :longest],
                None if old_BGT is None else old_BGT[list(members), :, :longest],
                None if reference_BGT is None else reference_BGT[list(members), :, :longest],
            )
        )
    return made


def sampler_gap(logps_BGT: Tensor, micro: MicroBatch) -> dict[str, Tensor]:
    """How far the sampler's log-probabilities are from those of the trainer at the same weights: mean and largest difference.

    Both are the same function of the same weights, so all that is left is rounding; more means that ratios are wrong.
    """
    gap_BGT = (logps_BGT.float() - micro.sampled_BGT).abs() * micro.mask_BGT
    return {"sampler_gap": gap_BGT.sum() / micro.mask_BGT.sum().clamp_min(1), "sampler_gap_max": gap_BGT.max()}


def pack_state(batches: Sequence[MicroBatch]) -> list[dict[str, Any]]:
    """Micro-batches as plain containers and CPU tensors; a frozen tower's features stand in them instead of pixels."""
    cpu = torch.device("cpu")
    moved = [to_device(replace(b, prompts=tuple(replace(p, vision=dict(p.vision)) for p in b.prompts)), cpu) for b in batches]
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
