"""Log-probabilities and entropies of given tokens, with as few copies of the logits as can be: they are what takes most memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recompute

CHUNK = 1024
"""Positions whose logits exist at a time; they are computed again in the backward pass."""


def token_logps(
    logits_of: Callable[[Tensor], Tensor], hidden_ND: Tensor, target_N: Tensor, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Log-probability (N,) of each target, and entropy (N,) at its place, float32 or float64.

    Args:
        logits_of: from hidden states (N, D) to logits (N, V).
        hidden_ND: hidden states.
        target_N: token ids.
        entropy_gradient: whether entropies carry a gradient, at the price of two more copies.
    """

    def compute(hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        logps_NV = F.log_softmax(logits_of(hidden_ND), dim=-1)
        if entropy_gradient and torch.is_grad_enabled():
            entropy_N = -(logps_NV.exp() * logps_NV.masked_fill(logps_NV.isneginf(), 0.0)).sum(-1)
        else:
            with torch.no_grad():
                probabilities_NV = logps_NV.exp()
                entropy_N = torch.special.entr(probabilities_NV, out=probabilities_NV).sum(-1)
        return logps_NV.gather(-1, target_N[:, None])[:, 0], entropy_N

    if not torch.is_grad_enabled():
        return compute(hidden_ND)
    return recompute(compute, hidden_ND, use_reentrant=False)  # type: ignore[no-any-return]
