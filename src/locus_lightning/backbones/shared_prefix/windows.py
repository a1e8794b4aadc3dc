"""Attention of a vision tower within images or windows: all of them in a few calls.

transformers splits the patches of all images into images or windows and attends within each of them in a loop of Python, thousands of calls
for some photos. Towers that can hand the lengths to a fused kernel hand them to :func:`windowed_attention` instead.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "locus_flash_windows"
"""The name of an implementation that takes lengths begins as transformers wants it: it looks for ``flash`` in it."""

_WASTE = 2.0
"""Parts are padded to the longest of their call, which is at most this many times as long as the shortest."""


def use_windows(model: Any) -> None:
    """Let the vision tower of a loaded model attend by :func:`windowed_attention`, where it can be told the lengths.

    The tower gets a configuration of its own for that: transformers would look for a kernel of this name when a model is built from it.
    """
    from transformers import AttentionInterface

    tower = getattr(model.base_model, "visual", None)
    if tower is not None and getattr(tower.config, "_attn_implementation", "").startswith("locus"):
        AttentionInterface.register(NAME, windowed_attention)
        before, own = tower.config, copy.deepcopy(tower.config)
        own._attn_implementation_internal = NAME
        for module in tower.modules():
            if getattr(module, "config", None) is before:
                module.config = own


@dataclass(frozen=True)
class _Batch:
    """Parts of similar length: positions (N, L) of their patches, missing ones pointing at 0, and which are there (None: all)."""

    index_NL: Tensor
    there_NL: Tensor | None


def _batches(ends: Tensor) -> list[_Batch]:
    """Batches of the parts that ``ends``, (parts + 1,), bounds; computed once for a tensor, which carries them from then on."""
    known: list[_Batch] | None = getattr(ends, "_locus_batches", None)
    if known is not None:
        return known
    bounds = ends.tolist()
    parts = sorted(((end - start, start) for start, end in pairwise(bounds) if end > start), reverse=True)
    groups: list[list[tuple[int, int]]] = []
    for length, start in parts:
        if not groups or groups[-1][0][0] > _WASTE * length:
            groups.append([])
        groups[-1].append((length, start))
    batches = []
    for group in groups:
        lengths = torch.tensor([length for length, _ in group])
        starts = torch.tensor([start for _, start in group])
        place = torch.arange(int(lengths.max()))
        there = place < lengths[:, None]
        index = torch.where(there, starts[:, None] + place, 0).to(ends.device)
        batches.append(_Batch(index, None if bool(there.all()) else there.to(ends.device)))
    ends._locus_batches = batches  # type: ignore[attr-defined]
    return batches


def windowed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within the parts that ``cu_seq_lens_q`` bounds, and within all where it is not given.

    Args:
        module: the attention layer.
        query: (1, H, S, D).
        key: likewise.
        value: likewise.
        attention_mask: None.
        scaling: of the dot products.
        cu_seq_lens_q: where each part begins, and the end, (parts + 1,).
        kwargs: not used.

    Returns:
        (1, S, H, D), and no weights.
    """
    if cu_seq_lens_q is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2), None
    out = torch.empty_like(query[0].transpose(0, 1))  # (S, H, D)
    for batch in _batches(cu_seq_lens_q):
        q, k, v = (x[0][:, batch.index_NL].transpose(0, 1) for x in (query, key, value))  # (N, H, L, D)
        mask = None if batch.there_NL is None else batch.there_NL[:, None, None]
        result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling).transpose(1, 2)  # (N, L, H, D)
        where, what = (batch.index_NL, result) if batch.there_NL is None else (batch.index_NL[batch.there_NL], result[batch.there_NL])
        out = out.index_copy(0, where.flatten(), what.flatten(0, -3))
    return out[None], None
