"""GRPO and its variants, chosen by a few settings."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import Reduction, Scale, group_advantages
from locus_lightning.objectives.base import Objective
from locus_lightning.objectives.kl import Estimator, kl_estimate
from locus_lightning.objectives.policy_loss import Level, cispo_loss, clipped_loss, log_ratio


class GRPO(Objective):
    """Group relative policy optimisation (DeepSeekMath 2024).

    The defaults are the paper's run (its framework EasyR1's defaults where the paper is silent, PAPER section 3). Variants:

    * DAPO: ``reduction: token`` with ``clip_high`` above ``clip_low`` (Yu et al. 2025), as the defaults are.
    * Dr. GRPO: ``scale: none``, ``reduction: constant`` (Liu et al. 2025).
    * GSPO: ``importance_sampling_level: sequence``, ``reduction: sequence``, bounds near 3e-4 (Zheng et al. 2025).
    * CISPO: ``surrogate: cispo`` with a high ``clip_high`` (MiniMax 2025).

    Args:
        scale: ``std`` divides advantages by their group's standard deviation; ``none`` does not.
        std_floor: The smallest standard deviation to divide by; 0 as in the paper.
        clip_low: The ratio is kept above 1 - clip_low.
        clip_high: The ratio is kept below 1 + clip_high.
        dual_clip: The bound of the loss of a bad token whose ratio explodes; null is none.
        surrogate: ``clip`` is PPO's clipped loss; ``cispo`` keeps every token's gradient.
        importance_sampling_level: Whether each ``token`` has its importance ratio or the whole ``sequence`` has one.
        reduction: How tokens are averaged: ``token``, ``sequence`` or ``constant`` (see ``token_weights``).
        kl_coef: The coefficient of the KL to the reference model (paper: 1e-2). 0 needs no reference pass.
        kl_estimator: The estimator of the KL: ``k1``, ``k2`` or ``k3``.
        kl_largest: The bound of a token's k3 estimate (EasyR1: 10); null is none.
    """

    def __init__(
        self,
        scale: Scale = "std",
        std_floor: float = 0.0,
        clip_low: float = 0.2,
        clip_high: float = 0.3,
        dual_clip: float | None = 3.0,
        surrogate: Literal["clip", "cispo"] = "clip",
        importance_sampling_level: Level = "token",
        reduction: Reduction = "token",
        kl_coef: float = 1e-2,
        kl_estimator: Estimator = "k3",
        kl_largest: float | None = 10.0,
    ) -> None:
        if not (0 <= clip_low < 1 and clip_high >= 0):
            raise ConfigError(f"objective.clip_low is {clip_low} and clip_high {clip_high}; give 0 <= clip_low < 1 and clip_high >= 0.")
        if dual_clip is not None and dual_clip <= 1:
            raise ConfigError(f"objective.dual_clip is {dual_clip}; it is above 1, or null.")
        if kl_coef < 0 or std_floor < 0:
            raise ConfigError(f"objective.kl_coef is {kl_coef} and std_floor {std_floor}; both are 0 or more.")
        if reduction not in get_args(Reduction) or scale not in get_args(Scale):
            raise ConfigError(
                f"objective.reduction is {reduction!r} (one of {', '.join(get_args(Reduction))}) and objective.scale {scale!r} (one of "
                f"{', '.join(get_args(Scale))})."
            )
        self.kl_largest = kl_largest
        self.scale, self.std_floor, self.reduction = scale, std_floor, reduction
        self.clip_low, self.clip_high, self.dual_clip = clip_low, clip_high, dual_clip
        self.surrogate, self.importance_sampling_level, self.kl_coef, self.kl_estimator = (
            surrogate,
            importance_sampling_level,
            kl_coef,
            kl_estimator,
        )

    def advantages(self, rewards_BG: Tensor) -> Tensor:
        """See :meth:`Objective.advantages` and :func:`group_advantages`."""
        return group_advantages(rewards_BG, self.scale, std_floor=self.std_floor)

    def __call__(
        self,
        logps_BGT: Tensor,
        old_logps_BGT: Tensor,
        ref_logps_BGT: Tensor | None,
        advantages_BG: Tensor,
        weights_BGT: Tensor,
        mask_BGT: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Objective.__call__`."""
        logps_BGT, mask_BGT = logps_BGT.float(), mask_BGT.float()
        ratio_BGT = log_ratio(logps_BGT, old_logps_BGT.float(), mask_BGT, self.importance_sampling_level)
        if self.surrogate == "cispo":
            policy_BGT, caught = cispo_loss(logps_BGT, ratio_BGT, advantages_BG, self.clip_high)
        else:
            policy_BGT, caught = clipped_loss(ratio_BGT, advantages_BG, self.clip_low, self.clip_high, self.dual_clip)
        loss = (policy_BGT * weights_BGT).sum()
        tokens = mask_BGT.sum().clamp_min(1.0)
        stats = {name: (hit * mask_BGT).sum() / tokens for name, hit in caught.items()}
        with torch.no_grad():
            stats["ratio_max"] = torch.where(mask_BGT > 0, ratio_BGT, 0.0).max().exp() if mask_BGT.any() else mask_BGT.new_ones(())
            stats["ratio_min"] = torch.where(mask_BGT > 0, ratio_BGT, 0.0).min().exp() if mask_BGT.any() else mask_BGT.new_ones(())
        if ref_logps_BGT is not None:
            kl_BGT = kl_estimate(logps_BGT, ref_logps_BGT.float(), self.kl_estimator, self.kl_largest) * mask_BGT
            loss = loss + self.kl_coef * (kl_BGT * weights_BGT).sum()
            stats["kl"] = kl_BGT.detach().sum() / tokens
        return loss, stats
