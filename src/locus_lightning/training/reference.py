"""A reference model that follows the policy."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError

if TYPE_CHECKING:
    from locus_lightning.training.grpo import LocusModule


@dataclass
class ReferenceSync:
    """When the reference model of the KL term moves towards the policy, and how far (TRL's ``sync_ref_model``; TR-DPO, arXiv 2404.09656).

    Weights become ``mixing`` x policy + (1 - ``mixing``) x reference. With adapters the reference is a second set of their matrices, which is
    mixed matrix by matrix (our choice).

    Args:
        every_n_steps: The number of optimiser steps between two moves.
        mixing: The policy's share, above 0 and at most 1. 1 replaces the reference; 0.01 with ``every_n_steps: 1`` is a moving average.
    """

    every_n_steps: int = 64
    mixing: float = 0.6

    def __post_init__(self) -> None:
        if not isinstance(self.every_n_steps, int) or self.every_n_steps < 1:
            raise ConfigError(f"model.reference_sync.every_n_steps is {self.every_n_steps}; it is a whole number of at least 1.")
        if not 0 < self.mixing <= 1:
            raise ConfigError(f"model.reference_sync.mixing is {self.mixing}; it is above 0 and at most 1.")


def check_reference_sync(module: LocusModule) -> None:
    """Refuse a moving reference where there is none, or where it would be needed as it was.

    Raises:
        ConfigError: names the settings.
    """
    if module.reference_sync is None:
        return
    if not module.objective.kl_coef:
        raise ConfigError(
            "model.reference_sync is set with objective.kl_coef 0, which needs no reference model; set kl_coef, or reference_sync: null."
        )
    kind = type(module.backbone)
    if kind.move_reference is Backbone.move_reference or "moves" not in inspect.signature(kind.freeze_reference).parameters:
        raise ConfigError(f"model.reference_sync is set and {kind.__name__} has no reference that moves; set model.reference_sync: null.")
    if not module.rollout.exact:
        raise ConfigError(
            f"model.reference_sync is set with {type(module.rollout).__name__}, which proves itself against the model without its adapter; set "
            "reference_sync: null, or use HFRollout."
        )
