"""GRPO and its variants, chosen by a few settings."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import Aggregation, Reduction, Scale, decoupled_advantages, group_advantages
from locus_lightning.objectives.base import Objective
from locus_lightning.objectives.corrections import Correction, Covariance, covariance, high_covariance, sampler_weights
from locus_lightning.objectives.kl import Estimator, kl_estimate
from locus_lightning.objectives.policy_loss import Level, cispo_loss, clipped_loss, gmpo_log_ratio, log_ratio, sapo_loss

Surrogate = Literal["clip", "cispo", "sapo", "gmpo"]


class GRPO(Objective):
    """Group relative policy optimisation (DeepSeekMath 2024).

    The defaults are the paper's run (its framework EasyR1's defaults where the paper is silent, PAPER section 3). Variants:

    * DAPO: ``reduction: token`` with ``clip_high`` above ``clip_low`` (Yu et al. 2025), as the defaults are.
    * Dr. GRPO: ``scale: none``, ``reduction: constant`` (Liu et al. 2025).
    * GSPO: ``importance_sampling_level: sequence``, ``reduction: sequence``, bounds near 3e-4 (Zheng et al. 2025).
    * LUSPO: the same with ``reduction: sequence_sum`` (Liu et al. 2026).
    * CISPO: ``surrogate: cispo`` with a high ``clip_high`` (MiniMax 2025).
    * SAPO: ``surrogate: sapo``, ``reduction: sequence`` (Gao et al. 2025).
    * GMPO: ``surrogate: gmpo``, ``reduction: sequence``, ``clip_low`` and ``clip_high`` 0.4, in the log (Zhao et al. 2025).
    * GDPO: ``aggregation: normalize_then_sum`` (Liu et al. 2026).

    Args:
        scale: ``std`` divides advantages by their group's standard deviation; ``none`` does not.
        std_floor: The smallest standard deviation to divide by; 0 as in the paper.
        aggregation: ``sum_then_normalize`` adds the rewards up first; ``normalize_then_sum`` normalises each in its group, then their sum over
            the rollout batch (``scale`` and ``std_floor`` have no effect then).
        clip_low: The ratio is kept above 1 - clip_low.
        clip_high: The ratio is kept below 1 + clip_high.
        dual_clip: The bound of the loss of a bad token whose ratio explodes; null is none.
        surrogate: ``clip`` is PPO's clipped loss; ``cispo`` keeps every token's gradient; ``sapo`` has a soft gate; ``gmpo`` takes the
            geometric mean of a completion's ratios.
        sapo_temperatures: Tau of SAPO's gate where the advantage is above 0, and elsewhere.
        importance_sampling_level: Whether each ``token`` has its importance ratio or the whole ``sequence`` has one.
        reduction: How tokens are averaged: ``token``, ``sequence``, ``constant`` or ``sequence_sum`` (see ``token_weights``).
        kl_coef: The coefficient of the KL to the reference model (paper: 1e-2). 0 needs no reference pass.
        kl_estimator: The estimator of the KL: ``k1``, ``k2`` or ``k3``.
        kl_largest: The bound of a token's k3 estimate (EasyR1: 10); null is none.
        kl_correction: Whether a token's KL is multiplied by its importance ratio, which makes the gradient unbiased once the policy has moved
            (DeepSeek-V3.2, 2025; TRL's ``use_bias_correction_kl``).
        entropy_coef: The coefficient of the entropy bonus. Its gradient needs more memory for the logits.
        covariance: What is done to tokens whose log-probability goes most with their advantage, so that entropy does not collapse (Cui et al.
            2025): ``clip`` takes the gradient of some of them away, ``kl`` adds a KL to the old policy, ``none`` does nothing.
        covariance_share: The share of tokens that are held back.
        covariance_bounds: With ``clip``, the covariance among which they are chosen at random.
        covariance_coef: With ``kl``, the coefficient.
        sampler_correction: How tokens are weighted whose sampler was not quite the policy, such as vLLM: ``token_truncate``, ``token_mask``,
            ``sequence_truncate``, ``sequence_mask`` or ``none`` (see ``sampler_weights``).
        sampler_cap: The largest such weight.
    """

    def __init__(
        self,
        scale: Scale = "std",
        std_floor: float = 0.0,
        aggregation: Aggregation = "sum_then_normalize",
        clip_low: float = 0.2,
        clip_high: float = 0.3,
        dual_clip: float | None = 3.0,
        surrogate: Surrogate = "clip",
        sapo_temperatures: tuple[float, float] = (1.0, 1.05),
        importance_sampling_level: Level = "token",
        reduction: Reduction = "token",
        kl_coef: float = 1e-2,
        kl_estimator: Estimator = "k3",
        kl_largest: float | None = 10.0,
        kl_correction: bool = False,
        entropy_coef: float = 0.0,
        covariance: Covariance = "none",
        covariance_share: float = 2e-4,
        covariance_bounds: tuple[float, float] = (1.0, 5.0),
        covariance_coef: float = 1.0,
        sampler_correction: Correction = "none",
        sampler_cap: float = 3.0,
    ) -> None:
        self.scale, self.std_floor, self.aggregation = scale, std_floor, aggregation
        self.clip_low, self.clip_high, self.dual_clip = clip_low, clip_high, dual_clip
        self.surrogate, self.sapo_temperatures, self.importance_sampling_level = (
            surrogate,
            tuple(sapo_temperatures),
            importance_sampling_level,
        )
        self.reduction, self.entropy_coef = reduction, entropy_coef
        self.kl_coef, self.kl_estimator, self.kl_largest, self.kl_correction = kl_coef, kl_estimator, kl_largest, kl_correction
        self.covariance, self.covariance_share, self.covariance_coef = covariance, covariance_share, covariance_coef
        self.covariance_bounds: tuple[float, float] = (covariance_bounds[0], covariance_bounds[1])
        self.sampler_correction, self.sampler_cap = sampler_correction, sampler_cap
        self._check()

    def _check(self) -> None:
        """Refuse settings that cannot work, by name."""
        if not (0 <= self.clip_low < 1 and self.clip_high >= 0):
            raise ConfigError(
                f"objective.clip_low is {self.clip_low} and clip_high {self.clip_high}; give 0 <= clip_low < 1 and clip_high >= 0."
            )
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ConfigError(f"objective.dual_clip is {self.dual_clip}; it is above 1, or null.")
        if self.kl_coef < 0 or self.std_floor < 0:
            raise ConfigError(f"objective.kl_coef is {self.kl_coef} and std_floor {self.std_floor}; both are 0 or more.")
        for name, kind in {"reduction": Reduction, "scale": Scale, "aggregation": Aggregation, "surrogate": Surrogate,
                           "covariance": Covariance, "sampler_correction": Correction}.items():  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(f"objective.{name} is {getattr(self, name)!r}; it is one of {', '.join(get_args(kind))}.")
        if min(self.sapo_temperatures) <= 0 or len(self.sapo_temperatures) != 2:
            raise ConfigError(f"objective.sapo_temperatures is {self.sapo_temperatures}; give two numbers above 0.")
        if self.sampler_cap <= 0 or not 0 < self.covariance_share <= 1 or self.covariance_bounds[0] > self.covariance_bounds[1]:
            raise ConfigError(
                f"objective.sampler_cap is {self.sampler_cap} (above 0), covariance_share {self.covariance_share} (above 0, at most 1), "
                f"covariance_bounds {self.covariance_bounds} (the lower first)."
            )

    def advantages(self, rewards_BG: Tensor) -> Tensor:
        """See :meth:`Objective.advantages` and :func:`group_advantages`."""
        return group_advantages(rewards_BG, self.scale, std_floor=self.std_floor)

    def advantages_of(self, rewards_BG: Tensor, scores_RBG: Tensor, weights_R: Tensor) -> Tensor:
        """See :meth:`Objective.advantages_of`, :func:`group_advantages` and :func:`decoupled_advantages`."""
        return self.advantages(rewards_BG) if self.aggregation == "sum_then_normalize" else decoupled_advantages(scores_RBG, weights_R)

    def __call__(
        self,
        logps_BGT: Tensor,
        old_logps_BGT: Tensor,
        ref_logps_BGT: Tensor | None,
        advantages_BG: Tensor,
        weights_BGT: Tensor,
        mask_BGT: Tensor,
        *,
        sampled_logps_BGT: Tensor | None = None,
        entropy_BGT: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Objective.__call__`."""
        logps_BGT, old_logps_BGT, mask_BGT = logps_BGT.float(), old_logps_BGT.float(), mask_BGT.float()
        ratio_BGT = log_ratio(logps_BGT, old_logps_BGT, mask_BGT, self.importance_sampling_level)
        policy_BGT, caught = self._policy_loss(logps_BGT, old_logps_BGT, ratio_BGT, advantages_BG, mask_BGT)
        if self.covariance != "none":
            policy_BGT, caught["covariance"] = self._hold_back(policy_BGT, logps_BGT, old_logps_BGT, advantages_BG, mask_BGT)
        if self.sampler_correction != "none" and sampled_logps_BGT is not None:
            correction_BGT = sampler_weights(old_logps_BGT, sampled_logps_BGT.float(), mask_BGT, self.sampler_correction, self.sampler_cap)
            policy_BGT, caught["sampler_masked"] = policy_BGT * correction_BGT, correction_BGT == 0
        loss = (policy_BGT * weights_BGT).sum()
        tokens = mask_BGT.sum().clamp_min(1.0)
        stats = {name: (hit * mask_BGT).sum() / tokens for name, hit in caught.items()}
        with torch.no_grad():
            stats["ratio_max"] = torch.where(mask_BGT > 0, ratio_BGT, 0.0).max().exp() if mask_BGT.any() else mask_BGT.new_ones(())
            stats["ratio_min"] = torch.where(mask_BGT > 0, ratio_BGT, 0.0).min().exp() if mask_BGT.any() else mask_BGT.new_ones(())
        if ref_logps_BGT is not None:
            kl_BGT = kl_estimate(logps_BGT, ref_logps_BGT.float(), self.kl_estimator, self.kl_largest) * mask_BGT
            if self.kl_correction:
                kl_BGT = kl_BGT * log_ratio(logps_BGT, old_logps_BGT, mask_BGT).clamp(-20.0, 20.0).exp()
            loss = loss + self.kl_coef * (kl_BGT * weights_BGT).sum()
            stats["kl"] = kl_BGT.detach().sum() / tokens
        if self.entropy_coef and entropy_BGT is not None:
            loss = loss - self.entropy_coef * (entropy_BGT.float() * weights_BGT).sum()
        return loss, stats

    def _policy_loss(
        self, logps_BGT: Tensor, old_logps_BGT: Tensor, ratio_BGT: Tensor, advantages_BG: Tensor, mask_BGT: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of every token, and what was clipped."""
        if self.surrogate == "cispo":
            return cispo_loss(logps_BGT, ratio_BGT, advantages_BG, self.clip_high)
        if self.surrogate == "sapo":
            return sapo_loss(ratio_BGT, advantages_BG, *self.sapo_temperatures)
        if self.surrogate == "gmpo":
            mean_BGT, caught = gmpo_log_ratio(logps_BGT, old_logps_BGT, mask_BGT, advantages_BG, self.clip_low, self.clip_high)
            return -advantages_BG[..., None] * mean_BGT.exp(), caught
        return clipped_loss(ratio_BGT, advantages_BG, self.clip_low, self.clip_high, self.dual_clip)

    def _hold_back(
        self, policy_BGT: Tensor, logps_BGT: Tensor, old_logps_BGT: Tensor, advantages_BG: Tensor, mask_BGT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens of high covariance without their gradient, or with a KL to the old policy."""
        values_BGT = covariance(logps_BGT, advantages_BG, mask_BGT)
        chosen_BGT = high_covariance(values_BGT, mask_BGT, self.covariance, self.covariance_share, self.covariance_bounds)
        if self.covariance == "clip":
            return torch.where(chosen_BGT, policy_BGT.detach(), policy_BGT), chosen_BGT
        return policy_BGT + self.covariance_coef * (logps_BGT - old_logps_BGT).abs() * chosen_BGT, chosen_BGT
