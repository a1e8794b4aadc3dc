"""Rewards of a group -> advantages, and per-token weights of the loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Scale = Literal["std", "none"]
Reduction = Literal["token", "sequence", "constant"]


def group_advantages(rewards_BG: Tensor, scale: Scale = "std", eps: float = 1e-6, std_floor: float = 0.0) -> Tensor:
    """Group-relative advantages (B, G), float32.

    ``std``: centred on the group's mean, divided by its standard deviation from n - 1, plus ``eps`` (DeepSeekMath 2024, as in
    EasyR1). ``none``: centred only (Dr. GRPO, Liu et al. 2025). ``std_floor`` keeps a group of nearly equal rewards from
    being blown up to full size (our choice; 0 is the paper's). A constant group gets exactly 0.
    """
    rewards_BG = rewards_BG.float()
    constant_B1 = zero_std_groups(rewards_BG)[:, None]
    centred_BG = rewards_BG - rewards_BG.mean(dim=1, keepdim=True)
    if scale == "std":
        centred_BG = centred_BG / (rewards_BG.std(dim=1, keepdim=True).clamp_min(std_floor) + eps)
    return centred_BG.masked_fill(constant_B1, 0.0)


def token_weights(mask_BGT: Tensor, reduction: Reduction, max_tokens: int) -> Tensor:
    """Weight of every token before normalisation: (B, G, T), zero where ``mask_BGT`` is.

    ``token``     1: every token alike (DAPO, Yu et al. 2025; EasyR1's default)
    ``sequence``  1 / length: every completion alike (GRPO as published)
    ``constant``  1 / ``max_tokens``: no preference for short or long answers (Dr. GRPO)

    Divided by :func:`weight_total` over all that one optimiser step sees, they sum to the published mean.
    """
    mask_BGT = mask_BGT.float()
    if reduction == "token":
        return mask_BGT
    if reduction == "sequence":
        return mask_BGT / mask_BGT.sum(dim=-1, keepdim=True).clamp_min(1.0)
    return mask_BGT / max_tokens


def weight_total(mask_BGT: Tensor, reduction: Reduction) -> Tensor:
    """What the weights of one optimiser step are divided by: its tokens (``token``), or its completions."""
    return mask_BGT.sum().float() if reduction == "token" else mask_BGT.any(dim=-1).sum().float()


def zero_std_groups(rewards_BG: Tensor) -> Tensor:
    """(B,) bool: groups whose rewards do not differ (by more than 1e-8) and so teach nothing."""
    return rewards_BG.amax(dim=1) - rewards_BG.amin(dim=1) <= 1e-8
