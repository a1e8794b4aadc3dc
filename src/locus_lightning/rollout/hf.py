"""Rollouts with the transformers model itself: one set of weights for policy, reference and sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from locus_lightning.backbones.base import Backbone
from locus_lightning.backbones.shared_prefix.packing import left_padded
from locus_lightning.errors import ConfigError
from locus_lightning.rollout.base import RolloutEngine, SamplingParams
from locus_lightning.types import Generation, Prompt

if TYPE_CHECKING:
    from transformers import Cache


_CLEAR_AT = 0.8
"""Finished rows leave the batch when at most this share is left: moving the others costs about a token."""


class HFRollout(RolloutEngine):
    """Every prompt is run once, its cache is repeated n times, and all completions are decoded as one batch, which
    finished rows leave.

    Positions are given explicitly at every step, so no state of a prompt outlives it.

    Args:
        prompts_at_once: The number of prompts that are decoded together. Lower it when the cache does not fit.
        merge_adapters: Whether decoding uses copies of the weights with LoRA added. It is faster, and costs the memory of the copies
            and, in 16 bits, their rounding. Null does so with float32 weights on a CPU only. 4-bit weights are never merged.
    """

    def __init__(self, prompts_at_once: int = 32, merge_adapters: bool | None = None) -> None:
        if prompts_at_once < 1:
            raise ConfigError(f"rollout.prompts_at_once is {prompts_at_once}; it is at least 1.")
        self.prompts_at_once, self.merge_adapters = prompts_at_once, merge_adapters

    @torch.no_grad()
    def generate(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[list[Generation]]:
        """See :meth:`RolloutEngine.generate`."""
        groups: list[list[Generation]] = []
        with backbone.sampling(merge_adapters=self.merge_adapters):
            # no prompts, no groups: a rank's share of the last validation batch can be empty
            for start in range(0, len(prompts), self.prompts_at_once):
                groups += self._decode(backbone, prompts[start : start + self.prompts_at_once], n, sampling)
        return groups

    def _decode(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[list[Generation]]:
        cache, hidden_RD, mask_RS = _prefill(backbone, prompts, n, sampling.max_new_tokens)
        rows, device = len(hidden_RD), hidden_RD.device
        position_R = torch.tensor([p.next_position for p in prompts], device=device).repeat_interleave(n)
        eos = torch.tensor(backbone.eos_ids, device=device)
        ids_RT = torch.zeros(rows, sampling.max_new_tokens, dtype=torch.long, device=device)
        logps_RT = torch.zeros(rows, sampling.max_new_tokens, device=device, dtype=torch.promote_types(hidden_RD.dtype, torch.float32))
        lengths_R = torch.full((rows,), sampling.max_new_tokens, device=device)
        ended_R = torch.zeros(rows, dtype=torch.bool, device=device)
        alive = torch.arange(rows, device=device)
        for t in range(sampling.max_new_tokens):
            logits_RV = backbone.next_token_logits(hidden_RD, sampling.temperature or 1.0)
            if t < sampling.min_new_tokens:
                logits_RV = logits_RV.index_fill(-1, eos, float("-inf"))
            token_R, logp_R = sample_token(logits_RV, sampling)
            ids_RT[alive, t], logps_RT[alive, t] = token_R, logp_R.to(logps_RT.dtype)
            ends_R = torch.isin(token_R, eos) & ~ended_R[alive]
            ended_R[alive[ends_R]], lengths_R[alive[ends_R]] = True, t + 1
            stay = (~ended_R[alive]).nonzero()[:, 0]
            if len(stay) == 0 or t + 1 == sampling.max_new_tokens:
                break
            if len(stay) <= _CLEAR_AT * len(alive):
                cache.batch_select_indices(stay)
                alive, token_R, position_R = alive[stay], token_R[stay], position_R[stay]
                mask_RS = None if mask_RS is None else mask_RS[stay]
            if mask_RS is not None:
                mask_RS = F.pad(mask_RS, (0, 1), value=1)
            hidden_RD = backbone.hidden(token_R[:, None], mask_RS, position_R[:, None] + t, cache=cache)[:, -1]
        generations = [
            Generation(ids_RT[r, :length].clone(), logps_RT[r, :length].clone(), truncated=not ended)
            for r, (length, ended) in enumerate(zip(lengths_R.tolist(), ended_R.tolist(), strict=True))
        ]
        return [generations[i : i + n] for i in range(0, rows, n)]


def _prefill(backbone: Backbone, prompts: Sequence[Prompt], n: int, room: int) -> tuple[Cache, Tensor, Tensor | None]:
    """Run every prompt once; cache, last hidden state (B*n, D) and mask (B*n, P), each for n rows a prompt; no mask where the cache knows."""
    from transformers import DynamicCache

    from locus_lightning.backbones.shared_prefix.cache import for_groups

    ids_BP, mask_BP, positions = left_padded(prompts)
    features = [image for images in backbone.features_of(prompts) for image in images]
    cache = DynamicCache()
    hidden_BD = backbone.hidden(ids_BP, mask_BP, positions, features, cache=cache)[:, -1]
    grouped, shared = for_groups(cache, mask_BP, n, room, backbone.shares_keys)
    return grouped, hidden_BD.repeat_interleave(n, dim=0), None if shared else mask_BP.repeat_interleave(n, dim=0)


def sample_token(logits_RV: Tensor, sampling: SamplingParams) -> tuple[Tensor, Tensor]:
    """One token a row, and its log-probability under the undistorted distribution: (R,), (R,)."""
    logps_RV = F.log_softmax(logits_RV, dim=-1)
    if sampling.temperature == 0:
        token_R = logits_RV.argmax(dim=-1)
    else:
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        if sampling.top_k:
            logits_RV = TopKLogitsWarper(sampling.top_k)(None, logits_RV)
        if sampling.top_p < 1:
            logits_RV = TopPLogitsWarper(sampling.top_p)(None, logits_RV)
        # the first arrival of exponential clocks that run at each token's probability: multinomial, several times faster on CPUs
        token_R = (logits_RV.softmax(dim=-1) / torch.empty_like(logits_RV).exponential_()).argmax(dim=-1)
    return token_R, logps_RV.gather(-1, token_R[:, None])[:, 0]
