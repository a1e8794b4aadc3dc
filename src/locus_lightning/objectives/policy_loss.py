"""Per-token policy losses. Everything float32, (B, G, T) unless named otherwise."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Level = Literal["token", "sequence"]


def log_ratio(logps_BGT: Tensor, old_logps_BGT: Tensor, mask_BGT: Tensor, level: Level = "token") -> Tensor:
    """log(pi / pi_old) of every token.

    ``sequence``: the mean over the completion's tokens, the same for each of them (GSPO, Zheng et al. 2025), with the
    gradient spread evenly.
    """
    difference_BGT = (logps_BGT - old_logps_BGT) * mask_BGT
    if level == "token":
        return difference_BGT
    length_BG1 = mask_BGT.sum(dim=-1, keepdim=True).clamp_min(1.0)
    return (difference_BGT.sum(dim=-1, keepdim=True) / length_BG1) * mask_BGT


def clipped_loss(
    log_ratio_BGT: Tensor,
    advantages_BG: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    dual_clip: float | None = 3.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate with separate bounds (clip-higher: DAPO) and dual clip (Ye et al. 2020).

    Returns the loss of every token, and boolean tensors of which tokens each bound caught: ``clip_low``, ``clip_high``, ``dual_clip``.
    """
    advantage_BG1 = advantages_BG[..., None]
    ratio_BGT = log_ratio_BGT.clamp(-20.0, 20.0).exp()
    unclipped_BGT = -advantage_BG1 * ratio_BGT
    clipped_BGT = -advantage_BG1 * ratio_BGT.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss_BGT = torch.maximum(unclipped_BGT, clipped_BGT)
    negative_BG1 = advantage_BG1 < 0
    caught = {
        "clip_low": (ratio_BGT < 1.0 - clip_low) & negative_BG1,
        "clip_high": (ratio_BGT > 1.0 + clip_high) & (advantage_BG1 > 0),
    }
    if dual_clip is not None:
        bound_BGT = (-advantage_BG1 * dual_clip).expand_as(loss_BGT)
        caught["dual_clip"] = negative_BG1 & (loss_BGT > bound_BGT)
        loss_BGT = torch.where(negative_BG1, torch.minimum(loss_BGT, bound_BGT), loss_BGT)
    return loss_BGT, caught


def cispo_loss(logps_BGT: Tensor, log_ratio_BGT: Tensor, advantages_BG: Tensor, clip_high: float) -> tuple[Tensor, dict[str, Tensor]]:
    """CISPO (MiniMax-M1, 2025): the importance weight is clipped from above and held constant; every token keeps its gradient."""
    ratio_BGT = log_ratio_BGT.clamp(-20.0, 20.0).exp()
    weight_BGT = ratio_BGT.clamp(max=1.0 + clip_high).detach()
    return -weight_BGT * advantages_BG[..., None] * logps_BGT, {"clip_high": ratio_BGT > 1.0 + clip_high}


def sapo_loss(log_ratio_BGT: Tensor, advantages_BG: Tensor, positive: float, negative: float) -> tuple[Tensor, dict[str, Tensor]]:
    """SAPO (Gao et al. 2025): a soft gate in place of clipping, f(r) = 4 / tau x sigmoid(tau (r - 1)), whose slope is 1 at r = 1 and falls
    off on both sides.

    Args:
        log_ratio_BGT: of every token, or of its completion.
        advantages_BG: group-relative advantages.
        positive: tau where the advantage is above 0.
        negative: tau elsewhere; larger, because gradients of bad tokens spread over the whole vocabulary.
    """
    advantage_BG1 = advantages_BG[..., None]
    ratio_BGT = log_ratio_BGT.clamp(-20.0, 20.0).exp()
    tau_BG1 = torch.where(advantage_BG1 > 0, positive, negative)
    return -advantage_BG1 * (4.0 / tau_BG1) * torch.sigmoid(tau_BG1 * (ratio_BGT - 1.0)), {}


def gmpo_log_ratio(
    logps_BGT: Tensor, old_logps_BGT: Tensor, mask_BGT: Tensor, advantages_BG: Tensor, low: float, high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """GMPO (Zhao et al. 2025): the log of the geometric mean of a completion's token ratios, each clipped first, the same for all its tokens.

    A token's log ratio is held below ``high`` where the advantage is above 0, and above -``low`` elsewhere: the side on which it would gain.
    """
    sign_BG1 = torch.where(advantages_BG[..., None] > 0, 1.0, -1.0)
    towards_BGT = sign_BG1 * (logps_BGT - old_logps_BGT) * mask_BGT
    bound_BG1 = torch.where(sign_BG1 > 0, high, low)
    held_BGT = sign_BG1 * torch.minimum(towards_BGT, bound_BG1)
    mean_BG1 = held_BGT.sum(dim=-1, keepdim=True) / mask_BGT.sum(dim=-1, keepdim=True).clamp_min(1.0)
    beyond_BGT = towards_BGT > bound_BG1
    return mean_BG1 * mask_BGT, {"clip_high": beyond_BGT & (sign_BG1 > 0), "clip_low": beyond_BGT & (sign_BG1 < 0)}
