"""Estimators of KL(policy || reference) from samples of the policy (Schulman, "Approximating KL divergence", 2020)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(logps_BGT: Tensor, ref_logps_BGT: Tensor, estimator: Estimator = "k3", largest: float | None = 10.0) -> Tensor:
    """Per-token estimate, (B, G, T), with d = log pi_ref - log pi, clamped to +-20.

    ``k1`` -d: unbiased value. Its own gradient is zero in expectation, so k2's is passed through instead (straight-through).
    ``k2`` d^2 / 2: biased value, exact gradient of the KL.
    ``k3`` exp(d) - 1 - d: unbiased, never negative, low variance (GRPO, EasyR1's "low_var_kl"). It is
    clamped to +-``largest``, beyond which it has no gradient: EasyR1, the paper's framework, clamps at 10. Without a bound a single token
    with d = 19 would own the step (its gradient is -1.8e8). None leaves it unbounded.
    """
    difference_BGT = (ref_logps_BGT - logps_BGT).clamp(-20.0, 20.0)
    squared_BGT = difference_BGT.square() / 2
    if estimator == "k1":
        return squared_BGT - (squared_BGT + difference_BGT).detach()
    if estimator == "k2":
        return squared_BGT
    estimate_BGT = difference_BGT.exp() - 1 - difference_BGT
    return estimate_BGT if largest is None else estimate_BGT.clamp(-largest, largest)
