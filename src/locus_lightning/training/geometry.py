"""Batch geometry: how many prompts a pass, an optimiser step and a rollout batch take."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from locus_lightning.data.source import CueKey, evenly_spaced
from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import weight_total

if TYPE_CHECKING:
    from locus_lightning.training.grpo import LocusModule

log = logging.getLogger("locus_lightning.training")

_PROBED = 32
"""Training samples whose prompts are measured against the token budget."""


def derive_geometry(module: LocusModule) -> None:
    """Derive accumulation and batch size from ``groups_per_step``, and refuse numbers that do not divide.

    Raises:
        ConfigError: names the numbers and what must hold.
    """
    _, stated, _ = module.stated_geometry()
    data, world = module.trainer.datamodule, module.trainer.world_size  # type: ignore[attr-defined]
    if module.groups_per_step is not None:
        share = world * module.micro_batch_size
        if module.groups_per_step < 1 or module.groups_per_step % share:
            raise ConfigError(
                f"model.groups_per_step is {module.groups_per_step}; it is a multiple of {world} process(es) x model.micro_batch_size "
                f"{module.micro_batch_size} = {share}."
            )
        passes = module.groups_per_step // share
        if stated not in (1, passes):
            raise ConfigError(
                f"model.groups_per_step {module.groups_per_step} takes {passes} passes an optimiser step, and trainer.accumulate_grad_batches "
                f"says {stated}; state one of the two."
            )
        module.use_accumulation(passes)
    if data is None:
        return
    plan = module.plan()
    if data.batch_size is None:
        data.batch_size = plan.micro_batch * plan.accumulate
    plan.check(data.batch_size)
    log.info(
        "%d prompts an optimiser step (%d process(es) x %d passes of %d); a rollout batch of %d prompts serves %d step(s).",
        world * plan.accumulate * plan.micro_batch, world, plan.accumulate, plan.micro_batch, world * data.batch_size,
        plan.updates(data.batch_size),
    )  # fmt: skip


def keep_to_budget(module: LocusModule, budget: int) -> None:
    """Lower the micro-batch, and take more passes a step, until the longest prompts that were probed keep to the budget."""
    data = module.trainer.datamodule.task_dataset("train", module.task)  # type: ignore[attr-defined]
    probed = evenly_spaced(len(data), _PROBED)
    with torch.device("cpu"):  # Lightning may have set another default device
        contents = module.contents([data[CueKey(0, i)] for i in probed])
    longest = max(module.backbone.prompt_length(content) for content in contents)
    group = module.backbone.row_tokens(longest, module.group_size, module.sampling.max_new_tokens)
    fits = max(1, budget // group)
    micro = max(n for n in range(1, module.micro_batch_size + 1) if module.micro_batch_size % n == 0 and n <= fits)
    note = f"token budget {budget:,}: the longest of {len(probed)} prompts has {longest:,} tokens, its group {group:,}; "
    if group > budget:
        log.warning("%sone group is over the budget: lower group_size, max_new_tokens or the images' resolution.", note)
    module.use_accumulation(module.trainer.accumulate_grad_batches * (module.micro_batch_size // micro))
    module.micro_batch_size = micro
    log.info("%s%d prompts a pass, %d passes an optimiser step.", note, micro, module.trainer.accumulate_grad_batches)


def step_totals(module: LocusModule, mask_BGT: Tensor, order: Sequence[Sequence[int]]) -> list[float]:
    """For every optimiser step: the weights' divisor over all ranks, over (accumulation x ranks), which the trainer averages by."""
    trainer = module.trainer
    a = trainer.accumulate_grad_batches
    steps = [[b for members in order[i : i + a] for b in members] for i in range(0, len(order), a)]
    totals = torch.stack([weight_total(mask_BGT[members], module.objective.reduction) for members in steps])
    totals = trainer.strategy.reduce(totals, reduce_op="sum")  # type: ignore[assignment]
    return (totals.clamp_min(1.0) / (a * trainer.world_size)).tolist()
