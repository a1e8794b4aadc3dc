"""Which settings a run was made with, and what a resumed run makes of those that have changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from locus_lightning.errors import CheckpointError

if TYPE_CHECKING:
    from locus_lightning.training.resume import ResumableModule

_PLAIN = (bool, int, float, str, type(None))

FIXED = (
    "optimizer",
    "data.batch_size",
    "data.seed",
    "data.train_samples",
    "data.order",
    "data.order.start",
    "data.order.until",
    "model.micro_batch_size",
    "model.num_iterations",
    "model.train_vision",
    "model.backbone.train_vision",
    "trainer.accumulate_grad_batches",
)
"""Settings that a resumed run cannot change: the optimiser's state, or the position in the data, would mean something else."""

_WITH_THE_BUFFER = ("model.group_size", "model.sampling.temperature")
"""Settings that cannot change while a rollout batch is half used, since it was made with the old ones."""


def run_settings(module: ResumableModule) -> dict[str, Any]:
    """Every plain setting of a run under its dotted name: of model, task, backbone, rewards, objective, sampling, optimiser, data and trainer."""
    trainer = module.trainer
    settings = _plain("model", module)
    for name in ("backbone", "task", "objective", "sampling", "validation", "rollout"):
        settings |= _plain(f"model.{name}", getattr(module, name, None))
    for reward in getattr(module, "rewards", ()):
        settings |= _plain(f"model.rewards.{reward.name}", reward)
    settings["trainer.accumulate_grad_batches"] = trainer.accumulate_grad_batches
    settings["trainer.gradient_clip_val"] = trainer.gradient_clip_val
    settings["trainer.precision"] = str(trainer.precision)
    for optimizer, groups in zip(trainer.optimizers, module.stated_groups, strict=False):
        settings["optimizer"] = type(optimizer).__name__
        for i, group in enumerate(groups):
            prefix = "optimizer" if len(groups) == 1 else f"optimizer.group{i}"
            settings |= {f"{prefix}.{key}": _as_plain(value) for key, value in group.items()}
    data = trainer.datamodule  # type: ignore[attr-defined]
    if data is not None:
        settings |= {"data.batch_size": data.batch_size, "data.seed": data.seed}
        order = _plain("data.order", getattr(data, "order", None))
        settings |= {key: value for key, value in order.items() if key.rpartition(".")[2] not in ("length", "pass_length", "seed", "size")}
        if "train" in data.datasets:
            settings["data.train_samples"] = len(data.datasets["train"])
    return settings


def _plain(prefix: str, owner: Any) -> dict[str, Any]:
    """Public attributes of an object that are plain values, or dataclasses and lists of them."""
    if owner is None:
        return {}
    values = {name: value for name, value in vars(owner).items() if not name.startswith("_") and name not in _NOT_SETTINGS}
    plain: dict[str, Any] = {f"{prefix}.{name}": value for name, value in values.items() if isinstance(value, _PLAIN)}
    plain |= {f"{prefix}.{name}": str(value) for name, value in values.items() if isinstance(value, torch.dtype)}
    for name, value in values.items():
        if is_dataclass(value) and not isinstance(value, type) and name in _RECORDS:
            plain |= _plain(f"{prefix}.{name}", value)
        elif isinstance(value, list | tuple) and all(isinstance(one, _PLAIN) for one in value):
            plain[f"{prefix}.{name}"] = list(value)
    return {f"{prefix}": type(owner).__name__, **plain}


_RECORDS = ("lora", "prompt", "reference_sync")
"""Attributes that are records of settings themselves."""

_NOT_SETTINGS = frozenset({"training", "allow_zero_length_dataloader_with_multiple_devices", "strict_loading", "packs", "shares_keys", "prepare_data_per_node",
                           "weights_on_disk", "skipped_steps", "stopping", "saving", "failed_together", "before", "seconds", "groups", "adapter_rank"})  # fmt: skip
"""Public attributes that say how a run goes, not how it was set."""


def _as_plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_resumed(old: Mapping[str, Any], new: Mapping[str, Any], *, half_used: bool) -> None:
    """Refuse changed settings that a resumed run cannot take over.

    Args:
        old: of the checkpoint.
        new: of this run.
        half_used: whether the checkpoint holds a rollout batch that is not used up.

    Raises:
        CheckpointError: names each setting with its old and new value.
    """
    fixed = (*FIXED, *(_WITH_THE_BUFFER if half_used else ()))
    changed = [f"{name} {old[name]} -> {new[name]}" for name in fixed if name in old and name in new and old[name] != new[name]]
    if changed:
        raise CheckpointError(
            f"a resumed run cannot change {', '.join(changed)}; continue with the old value, or begin a new run from its weights (`locus export "
            "RUN FOLDER`, then --checkpoint FOLDER)."
        )


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a resumed run does otherwise than before, setting by setting."""
    return [f"{name} {old[name]} -> {value}" for name, value in new.items() if name in old and old[name] != value]


def take_over_rates(optimizers: Sequence[Any], schedulers: Sequence[Any], stated: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Put the stated hyper-parameters into optimisers whose state came from a checkpoint, at the schedule's place.

    Args:
        optimizers: restored.
        schedulers: their schedulers, restored; each multiplies a base rate by a function of the step.
        stated: hyper-parameters of every group of every optimiser, as they are configured now.
    """
    for optimizer, scheduler, groups in zip(optimizers, schedulers, stated, strict=True):
        for i, (group, now) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
            base = now["lr"]
            factor = scheduler.lr_lambdas[i](scheduler.last_epoch)
            group.update({**now, "initial_lr": base, "lr": base * factor})
            scheduler.base_lrs[i] = base
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
