"""Next-token loss on the right answer."""

from __future__ import annotations

from torch import Tensor


def next_token_loss(logps: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean negative log-likelihood, float32: ``weights`` are 0 except at answer tokens (:func:`token_weights`); 0 where there are none."""
    weights = weights.float()
    return -(logps.float() * weights).sum() / weights.sum().clamp_min(1.0)
