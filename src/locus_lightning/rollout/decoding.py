"""Decoding the completions of some prompts: the same step for every token, captured where the device offers that."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache

from locus_lightning.backbones.base import Backbone
from locus_lightning.backbones.shared_prefix.cache import GroupCache, for_groups, joined, keep_rows
from locus_lightning.backbones.shared_prefix.packing import left_padded
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.capture import Capture
from locus_lightning.types import Generation, Prompt

_SIZES = (1.0, 0.75, 0.5, 0.25, 0.125)
"""Shares of the rows that a captured step comes in: every size is a capture of its own."""
_LEAVE_AT = 0.8
"""Uncaptured, ended rows leave when at most this share of the present ones goes on: moving the others costs about a token."""
PREFILL = 8192
"""Tokens of prompts that are run in one pass, about, where prompts' keys are kept once: what a pass takes for a moment stays bounded."""
_LOOK_EVERY = 8
"""Captured steps between two looks at what has ended. Every look waits for the GPU."""
_ROOM, _CAPTURED_ROOM = 32, 256
"""Places for tokens that are added at a time: unfilled ones cost a little at every token, new ones a move or a capture."""


class Decoding:
    """``n`` completions of each of some prompts under way. Every prompt is run once, when this is constructed.

    The tensors of a step stay where they are, and what changes from step to step is in tensors, so that a captured step can be replayed.
    Rows that have ended go on sampling until they leave; what they sample is cut off. Positions are given explicitly at every step, so no
    state of a prompt outlives it.

    Args:
        backbone: in its sampling mode.
        prompts: B of them.
        n: completions of each.
        sampling: how to sample.
        capture: capture steps as CUDA graphs, where prompts' keys are kept once.
    """

    def __init__(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams, capture: bool) -> None:
        self.backbone, self.n, self.sampling = backbone, n, sampling
        hidden_BD, filled, mask_BP = self._prefill(prompts)
        device = hidden_BD.device
        self.rows = len(prompts) * n
        self.room = min(sampling.max_new_tokens, _CAPTURED_ROOM if capture else _ROOM)
        self.cache = for_groups(filled, mask_BP, n, self.room, backbone.shares_keys)
        shared = isinstance(self.cache, GroupCache)
        self.capture = Capture(capture and shared)
        self.mask_RS = None if shared else mask_BP.repeat_interleave(n, dim=0)
        self.eos = torch.tensor(backbone.eos_ids, device=device)
        self.ids_RT = torch.zeros(self.rows, sampling.max_new_tokens, dtype=torch.long, device=device)
        logps_type = torch.promote_types(hidden_BD.dtype, torch.float32)
        self.logps_RT = torch.zeros(self.rows, sampling.max_new_tokens, device=device, dtype=logps_type)
        self.count_1 = torch.zeros(1, dtype=torch.long, device=device)  # tokens that every row has
        self.origin_R = torch.arange(self.rows, device=device)  # which row of the results a present row is
        self.position_R1 = torch.tensor([p.next_position for p in prompts], device=device).repeat_interleave(n)[:, None]
        self.token_R1 = torch.zeros(self.rows, 1, dtype=torch.long, device=device)
        self._sample(hidden_BD.repeat_interleave(n, dim=0))

    def _prefill(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Cache, Tensor]:
        """Last hidden states (B, D), the filled cache, and the prompts' mask (B, P)."""
        ids_BP, mask_BP, positions = left_padded(prompts)
        features = self.backbone.features_of(prompts)
        together = max(1, PREFILL // ids_BP.shape[1]) if self.backbone.shares_keys else len(prompts)
        caches, hidden = [], []
        for start in range(0, len(prompts), together):
            some = slice(start, start + together)
            images = [image for own in features[some] for image in own]
            caches.append(self.backbone.empty_cache())
            hidden.append(
                self.backbone.hidden(ids_BP[some], mask_BP[some], positions[..., some, :], images, cache=caches[-1])[:, -1].clone()
            )
        return torch.cat(hidden), joined(caches), mask_BP

    def run(self) -> list[list[Generation]]:
        """Decode to the end, and give every prompt its completions."""
        ended_R = torch.isin(self.ids_RT[:, 0], self.eos)  # of the present rows
        looked = 1
        for done in range(1, self.sampling.max_new_tokens):
            if not self.capture.wanted or done % _LOOK_EVERY == 0 or done == 1:
                ended_R |= torch.isin(self.ids_RT[self.origin_R, looked:done], self.eos).any(dim=1)
                looked = done
                going = int((~ended_R).sum())
                if going == 0:
                    break
                ended_R = self._let_leave(ended_R, going)
            self._make_room(done)
            self.capture.run(self._step)
        return self._results()

    def _step(self) -> None:
        """One more token for every present row."""
        if isinstance(self.cache, GroupCache):
            self.cache.begin_step()
        elif self.mask_RS is not None:
            self.mask_RS = F.pad(self.mask_RS, (0, 1), value=1)
        hidden_RD = self.backbone.hidden(self.token_R1, self.mask_RS, self.position_R1, cache=self.cache)[:, -1]
        if isinstance(self.cache, GroupCache):
            self.cache.end_step()
        self.position_R1.add_(1)
        self._sample(hidden_RD)

    def _sample(self, hidden_RD: Tensor) -> None:
        """Sample a token a row, and note it."""
        logits_RV = self.backbone.next_token_logits(hidden_RD, self.sampling.temperature or 1.0)
        if self.sampling.min_new_tokens:
            too_soon = torch.where(self.count_1 < self.sampling.min_new_tokens, float("-inf"), 0.0)
            logits_RV = logits_RV.index_add(-1, self.eos, too_soon.to(logits_RV.dtype).expand(len(logits_RV), len(self.eos)))
        token_R, logp_R = sample_token(logits_RV, self.sampling)
        place = (self.origin_R, self.count_1.expand(len(token_R)))
        self.ids_RT.index_put_(place, token_R)
        self.logps_RT.index_put_(place, logp_R.to(self.logps_RT.dtype))
        self.token_R1.copy_(token_R[:, None])
        self.count_1.add_(1)

    def _let_leave(self, ended_R: Tensor, going: int) -> Tensor:
        """Let ended rows leave, as many as the sizes of a captured step allow; gives ``ended_R`` of those that stay."""
        present = len(ended_R)
        if self.capture.wanted:
            size = min(max(round(share * self.rows), 1) for share in _SIZES if round(share * self.rows) >= going)
        else:
            size = going if going <= _LEAVE_AT * present else present
        if size >= present:
            return ended_R
        stay = ended_R.to(torch.uint8).argsort(stable=True)[:size].sort().values  # rows that go on, and ended ones up to the size
        keep_rows(self.cache, stay)
        self.mask_RS = None if self.mask_RS is None else self.mask_RS[stay]
        self.origin_R, self.token_R1, self.position_R1 = self.origin_R[stay], self.token_R1[stay], self.position_R1[stay]
        self.capture.changed()
        return ended_R[stay]

    def _make_room(self, done: int) -> None:
        """Add places where every row has filled its own; a token's keys take a place in the step after the one that sampled it."""
        if done <= self.room or not isinstance(self.cache, GroupCache):
            return
        self.room = min(self.sampling.max_new_tokens, self.room + (_CAPTURED_ROOM if self.capture.wanted else _ROOM))
        self.cache.make_room(self.room)
        self.capture.changed()

    def _results(self) -> list[list[Generation]]:
        count = int(self.count_1)
        ends_RT = torch.isin(self.ids_RT[:, :count], self.eos)
        ended_R = ends_RT.any(1)
        lengths_R = torch.where(ended_R, ends_RT.int().argmax(1) + 1, self.sampling.max_new_tokens)
        generations = [
            Generation(self.ids_RT[r, :length].clone(), self.logps_RT[r, :length].clone(), truncated=not end)
            for r, (length, end) in enumerate(zip(lengths_R.tolist(), ended_R.tolist(), strict=True))
        ]
        return [generations[i : i + self.n] for i in range(0, self.rows, self.n)]


def prefilled(prompts: int, longest: int) -> int:
    """Tokens of prompts that are run in one pass, at most."""
    return min(prompts * longest, max(PREFILL, longest))


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
        token_R = logits_RV.softmax(dim=-1).div_(torch.empty_like(logits_RV).exponential_()).argmax(dim=-1)
    return token_R, logps_RV.gather(-1, token_R[:, None])[:, 0]
