"""Next-token loss on the right answer."""

from __future__ import annotations

from torch import Tensor


def next_token_loss(logps_BGT: Tensor, mask_BGT: Tensor) -> Tensor:
    """Mean negative log-likelihood over answer tokens, float32; 0 where there are none."""
    mask_BGT = mask_BGT.float()
    return -(logps_BGT.float() * mask_BGT).sum() / mask_BGT.sum().clamp_min(1.0)
