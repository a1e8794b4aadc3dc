"""Settings of reinforcement that cannot work, refused before weights load."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from locus_lightning.backbones.offers import Offers
from locus_lightning.errors import ConfigError
from locus_lightning.tasks.base import check_fit
from locus_lightning.training.reference import check_reference_sync

if TYPE_CHECKING:
    from locus_lightning.training.base import TaskModule
    from locus_lightning.training.grpo import LocusModule

log = logging.getLogger("locus_lightning")

_MOST = 10_000
"""The largest number of prompts, completions or iterations that is taken for meant."""


def check_settings(module: LocusModule) -> None:
    """Refuse settings that cannot work, by name.

    Raises:
        ConfigError: names the key, the value and what to do.
    """
    if module.group_size < 2:
        raise ConfigError(f"model.group_size is {module.group_size}: a group-relative advantage needs at least 2 completions a prompt.")
    if module.sampling.top_p < 1 or module.sampling.top_k > 0 or module.sampling.min_new_tokens > 0:
        raise ConfigError(
            f"model.sampling has top_p {module.sampling.top_p}, top_k {module.sampling.top_k} and min_new_tokens "
            f"{module.sampling.min_new_tokens}: with importance ratios the sampled distribution must be the policy's own; set top_p 1.0, "
            "top_k 0 and min_new_tokens 0."
        )
    if module.sampling.temperature <= 0:
        raise ConfigError("model.sampling.temperature is 0: greedy completions of a group are all alike; set it above 0.")
    counts = {"group_size": module.group_size, "micro_batch_size": module.micro_batch_size, "num_iterations": module.num_iterations}
    for name, value in counts.items():
        if not isinstance(value, int) or not 1 <= value <= _MOST:
            raise ConfigError(f"model.{name} is {value}; it is a whole number from 1 to {_MOST:,}.")
    if module.resample < 0:
        raise ConfigError(f"model.resample is {module.resample}; it is at least 0.")
    if module.token_budget is not None and module.token_budget < 1:
        raise ConfigError(f"model.token_budget is {module.token_budget}; it is at least 1 token, or null.")
    if not 0 <= module.max_failed_groups <= 1 or (module.reward_timeout is not None and not module.reward_timeout > 0):
        raise ConfigError(
            f"model.max_failed_groups is {module.max_failed_groups} (a share between 0 and 1), model.reward_timeout {module.reward_timeout} "
            "(seconds above 0, or null)."
        )
    if module.resample and not module.filter_groups:
        raise ConfigError(f"model.resample is {module.resample} but model.filter_groups is false; set filter_groups: true.")
    _check_rewards(module)


def _check_rewards(module: LocusModule) -> None:
    names = Counter(reward.name for reward in module.rewards)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigError(f"model.rewards holds {twice[0]!r} twice; every reward is logged by its name: give one of them another `name`.")
    if "total" in names:
        raise ConfigError("model.rewards holds a reward called 'total', which is the name of the weighted sum; give it another `name`.")
    if not any(reward.weight for reward in module.rewards):
        raise ConfigError("model.rewards holds no reward with a weight other than 0, so nothing would be optimised; add one.")
    check_fit(module.task, module.rewards)


def check_backbone(module: LocusModule) -> None:
    """Refuse a backbone that has no reference model where one is needed.

    Raises:
        ConfigError: names the settings.
    """
    check_reference_sync(module)
    if module.objective.kl_coef > 0 and module.backbone.adapter_rank and module.backbone.train_vision:
        raise ConfigError(
            "backbone.lora with backbone.train_vision has no reference model for objective.kl_coef: with the adapter off the tower has "
            "still moved; set objective.kl_coef to 0, or train_vision to false."
        )


def check_strategy(module: TaskModule) -> None:
    """Refuse a strategy that cannot carry rollouts, and what does not go with one that cuts weights into pieces.

    Raises:
        ConfigError: names it and those that work.
    """
    strategy = module.trainer.strategy
    kind, stage = type(strategy).__name__, _zero_stage(strategy)
    if kind in ("FSDPStrategy", "ModelParallelStrategy") or stage == 3:
        name = "deepspeed_stage_3" if stage == 3 else "fsdp" if kind == "FSDPStrategy" else kind
        raise ConfigError(
            f"trainer.strategy is {name}, whose processes hold pieces of the weights; rollouts of different length would wait for each other for "
            "ever. Use fsdp2, which gathers the weights for rollouts, or ddp with adapters."
        )
    if kind == "DeepSpeedStrategy" and strategy.root_device.type != "cuda":
        raise ConfigError("trainer.strategy is deepspeed, which runs on CUDA GPUs alone; use fsdp2, ddp, or one device.")
    if kind == "DeepSpeedStrategy":
        log.warning("trainer.strategy is deepspeed: a run that is stopped cannot be continued from its checkpoint yet; fsdp2 and ddp can.")
    if kind not in ("SingleDeviceStrategy", "DDPStrategy", "FSDP2Strategy", "DeepSpeedStrategy"):
        raise ConfigError(f"trainer.strategy is {kind}, which has not been tried; use one device, ddp, fsdp2, or deepspeed_stage_1 or _2.")
    if kind == "FSDP2Strategy":
        _check_sharded(module)


def _check_sharded(module: TaskModule) -> None:
    """What does not go with fsdp2."""
    if type(module.backbone).shardable is Offers.shardable:
        module.backbone.shardable()  # refuses
    if module.backbone.quantize:
        raise ConfigError(
            f"trainer.strategy is fsdp2 with backbone.quantize {module.backbone.quantize}: 4-bit weights cannot be cut into pieces; use ddp, or "
            "set quantize: null."
        )
    if getattr(module, "reference_sync", None) and module.backbone.adapter_rank:
        raise ConfigError(
            "trainer.strategy is fsdp2 with model.reference_sync and adapters, which has not been built; set reference_sync: null, or use ddp."
        )
    if not module.rollout.exact:
        raise ConfigError(
            f"trainer.strategy is fsdp2 with {type(module.rollout).__name__}, which is handed adapters by a process that holds all of them; "
            "use ddp with it, or HFRollout."
        )
    optimizer = module.try_optimizer()
    if type(optimizer).__module__.startswith("bitsandbytes") or type(optimizer).__name__ == "Adafactor":
        raise ConfigError(
            f"trainer.strategy is fsdp2 with {type(optimizer).__name__}, which does not know weights in pieces; set model.optimizer to "
            "torch.optim.AdamW, whose state is shared out over the processes."
        )


def _zero_stage(strategy: Any) -> int | None:
    config = getattr(strategy, "config", None)
    return (
        config.get("zero_optimization", {}).get("stage")
        if type(strategy).__name__ == "DeepSpeedStrategy" and isinstance(config, dict)
        else None
    )
