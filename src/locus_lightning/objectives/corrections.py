"""What is done to the loss of single tokens or completions before they are summed: the sampler's own probabilities, and tokens of high covariance."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
Covariance = Literal["none", "clip", "kl"]


def sampler_weights(old_logps_BGT: Tensor, sampled_logps_BGT: Tensor, mask_BGT: Tensor, correction: Correction, cap: float) -> Tensor:
    """Weights (B, G, T) for tokens that another program sampled, w = pi_old / pi_sampler: its probabilities are not quite the trainer's.

    ``token_truncate``    min(w, cap) of every token (truncated importance sampling, Yao et al. 2025)
    ``token_mask``        w of every token, 0 where it is above the cap (IcePop, 2025)
    ``sequence_truncate`` as the first, with the product over the completion's tokens as one ratio
    ``sequence_mask``     as the second, likewise

    Without gradient. Names and cap are TRL's.
    """
    difference_BGT = (old_logps_BGT - sampled_logps_BGT) * mask_BGT
    if correction.startswith("sequence"):
        difference_BGT = difference_BGT.sum(dim=-1, keepdim=True).expand_as(difference_BGT)
    ratio_BGT = difference_BGT.clamp(-20.0, 20.0).exp().detach()
    if correction.endswith("truncate"):
        return ratio_BGT.clamp(max=cap)
    return torch.where(ratio_BGT <= cap, ratio_BGT, 0.0)


def covariance(logps_BGT: Tensor, advantages_BG: Tensor, mask_BGT: Tensor) -> Tensor:
    """The contribution of every token, (B, G, T), to the covariance of log-probability and advantage over a micro-batch; without gradient.

    It drives the collapse of entropy (Cui et al. 2025, equation 9).
    """
    with torch.no_grad():
        tokens = mask_BGT.sum().clamp_min(1.0)
        advantages_BGT = advantages_BG[..., None] * mask_BGT
        centred_BGT = logps_BGT - (logps_BGT * mask_BGT).sum() / tokens
        return centred_BGT * (advantages_BGT - advantages_BGT.sum() / tokens) * mask_BGT


def high_covariance(covariance_BGT: Tensor, mask_BGT: Tensor, kind: Covariance, share: float, bounds: tuple[float, float]) -> Tensor:
    """Which tokens, (B, G, T) bool, are held back.

    ``kl``   the ``share`` of all tokens with the highest covariance (KL-Cov)
    ``clip`` a random choice, as many as ``share`` of all tokens, among those whose covariance lies within ``bounds`` (Clip-Cov; torch's generator)

    At least one token is chosen where there is any to choose from.
    """
    count = max(1, int(share * float(mask_BGT.sum())))
    chosen_N = torch.zeros(mask_BGT.numel(), dtype=torch.bool, device=mask_BGT.device)
    candidates_BGT = (mask_BGT > 0) if kind == "kl" else (covariance_BGT >= bounds[0]) & (covariance_BGT <= bounds[1]) & (mask_BGT > 0)
    where_N = candidates_BGT.flatten().nonzero()[:, 0]
    if kind == "kl":
        where_N = where_N[covariance_BGT.flatten()[where_N].argsort(descending=True)]
    else:
        where_N = where_N[torch.randperm(len(where_N), device="cpu").to(where_N.device)]
    chosen_N[where_N[:count]] = True
    return chosen_N.view_as(mask_BGT)
