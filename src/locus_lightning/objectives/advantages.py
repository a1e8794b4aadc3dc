"""Rewards of a group -> advantages, and per-token weights of the loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["std", "none"]
Reduction = Literal["token", "sequence", "constant", "sequence_sum"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]


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


def decoupled_advantages(scores_RBG: Tensor, weights_R: Tensor, eps: float = 1e-6) -> Tensor:
    """Advantages (B, G) with every reward normalised by itself (GDPO, Liu et al. 2026), so that a reward of small spread is not drowned.

    Args:
        scores_RBG: what each of R rewards gave.
        weights_R: of the rewards.
        eps: beside every standard deviation.

    Within each group every reward is centred and divided by its standard deviation. Their weighted sum is centred and divided by its standard
    deviation over the whole rollout batch of this process. Where all are equal it is exactly 0.
    """
    scores_RBG = scores_RBG.float()
    centred_RBG = scores_RBG - scores_RBG.mean(dim=2, keepdim=True)
    constant_RB1 = (scores_RBG.amax(dim=2) - scores_RBG.amin(dim=2) <= 1e-8)[..., None]
    each_RBG = (centred_RBG / (scores_RBG.std(dim=2, keepdim=True) + eps)).masked_fill(constant_RB1, 0.0)
    total_BG = (each_RBG * weights_R.float()[:, None, None]).sum(0)
    spread = total_BG.std()
    return torch.zeros_like(total_BG) if total_BG.numel() < 2 or spread <= 1e-8 else (total_BG - total_BG.mean()) / (spread + eps)


def token_weights(mask_BGT: Tensor, reduction: Reduction, max_tokens: int) -> Tensor:
    """Weight of every token before normalisation: (B, G, T), zero where ``mask_BGT`` is.

    ``token``     1: every token alike (DAPO, Yu et al. 2025; EasyR1's default)
    ``sequence``  1 / length: every completion alike (GRPO as published)
    ``constant``  1 / ``max_tokens``: no preference for short or long answers (Dr. GRPO)
    ``sequence_sum`` 1, and the total counts completions: with one ratio a completion it is LUSPO (Liu et al. 2026), whose loss of a
    completion grows with its length, where GSPO's does not and so prefers short ones

    Divided by :func:`weight_total` over all that one optimiser step sees, they sum to the published mean.
    """
    mask_BGT = mask_BGT.float()
    if reduction in ("token", "sequence_sum"):
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
