"""Attention that knows what it is for: packed rows without the scores that their mask would throw away, decoding without copies of
shared keys. Registered with transformers under :data:`NAME`; everything else is transformers' own ``sdpa``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "locus_sdpa"


def register() -> str:
    """Make :data:`NAME` known to transformers, with the masks of its ``sdpa``; returns the name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


_WORTH = 512
"""Rows shorter than this are done sooner as one dense block."""


@dataclass(frozen=True)
class PackedLayout:
    """Where things stand in packed rows ``[prompt | c_1 | ... | c_G | padding]``.

    prompt       longest prompt, P
    index_RN     positions of the completions' tokens, G x T of them a row; missing ones point at 0
    mask_C1TK    what a completion's tokens see, for the R x G completions: keys are P prompt positions, then the T of its own
    source_RS    for every position of a row: where its output lies in [P prompt outputs | G x T completion outputs | 0]
    shape        (G, T)
    """

    prompt: int
    index_RN: Tensor
    mask_C1TK: Tensor
    source_RS: Tensor
    shape: tuple[int, int]


def attach_layout(mask: Tensor, layout: PackedLayout | None) -> None:
    """Let a mask carry the layout of its packed rows. transformers hands the mask on untouched, also when gradient checkpointing runs a
    layer again, and takes no further argument."""
    mask._locus_layout = layout  # type: ignore[attr-defined]


def layout_of(mask: Tensor | None) -> PackedLayout | None:
    """The layout that :func:`attach_layout` gave a mask, or None."""
    return getattr(mask, "_locus_layout", None)


def packed_layout(prompts: Sequence[int], bodies: Sequence[Sequence[int]], length: int, device: torch.device) -> PackedLayout | None:
    """The layout of rows with these lengths of prompts and completions, or None where one dense block is as good."""
    rows, group, longest = len(prompts), len(bodies[0]), max((n for row in bodies for n in row), default=0)
    if length < _WORTH or not longest:
        return None
    prompt = max(prompts)
    index = torch.zeros(rows, group, longest, dtype=torch.long)
    source = torch.full((rows, length), prompt + group * longest, dtype=torch.long)
    for r, (own, lengths) in enumerate(zip(prompts, bodies, strict=True)):
        source[r, :own] = torch.arange(own)
        start = own
        for g, n in enumerate(lengths):
            index[r, g, :n] = torch.arange(start, start + n)
            source[r, start : start + n] = prompt + g * longest + torch.arange(n)
            start += n
    sees_prompt = torch.arange(prompt) < torch.tensor(prompts)[:, None, None]
    own_causal = torch.ones(longest, longest, dtype=torch.bool).tril().expand(rows, -1, -1)
    mask = torch.cat([sees_prompt.expand(-1, longest, -1), own_causal], dim=-1)
    mask_of_heads = mask.repeat_interleave(group, dim=0)[:, None]
    return PackedLayout(prompt, index.flatten(1).to(device), mask_of_heads.to(device), source.to(device), (group, longest))


def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, scale: float | None) -> Tensor:
    """(R, H, S, D) of packed rows: the prompt attends to itself; a completion to the prompt and itself. Exact."""
    (rows, heads, _, width), shared = query.shape, key.shape[1]
    each, (group, longest), prompt = heads // shared, layout.shape, layout.prompt
    keys, values = (x[:, :, :prompt] for x in (key, value))
    repeated = (keys.repeat_interleave(each, dim=1), values.repeat_interleave(each, dim=1)) if each > 1 else (keys, values)
    alone = F.scaled_dot_product_attention(query[:, :, :prompt], repeated[0], repeated[1], is_causal=True, scale=scale)

    def completions(x: Tensor) -> Tensor:
        """(R, h, S, D) -> (R*G, h, T, D)."""
        index = layout.index_RN[:, None, :, None].expand(-1, x.shape[1], -1, width)
        return x.gather(2, index).view(rows, x.shape[1], group, longest, width).transpose(1, 2).flatten(0, 1)

    def behind_prompt(first: Tensor, x: Tensor) -> Tensor:
        """Keys or values of the prompt, then a completion's own: (R*G, h, P + T, D)."""
        before = first[:, None].expand(-1, group, -1, -1, -1).flatten(0, 1)
        return torch.cat([before, completions(x)], dim=2)

    # heads that share keys stand as further positions of one head: no copies of keys for them
    queries = completions(query).reshape(rows * group, shared, each * longest, width)
    mask = layout.mask_C1TK.repeat(1, 1, each, 1)
    outputs = F.scaled_dot_product_attention(queries, behind_prompt(keys, key), behind_prompt(values, value), attn_mask=mask, scale=scale)
    outputs = outputs.view(rows, group, heads, longest, width).transpose(1, 2).reshape(rows, heads, group * longest, width)
    rows_and_pad = torch.cat([alone, outputs, outputs.new_zeros(rows, heads, 1, width)], dim=2)
    return rows_and_pad.gather(2, layout.source_RS[:, None, :, None].expand(-1, heads, -1, width))


@dataclass(frozen=True)
class SharedPrefix:
    """Keys and values of B prompts (B, H, P, D), each shared by up to ``group`` rows; ``slot_R`` is b * group + g of each row.

    ``hidden_B11K`` is True where no row may look, over the P places of the prompts and then the rows' own places; B may be 1.
    """

    keys: Tensor
    values: Tensor
    group: int
    slot_R: Tensor
    hidden_B11K: Tensor


def attach_prefix(keys: Tensor, prefix: SharedPrefix) -> None:
    """Let the rows' own keys carry the keys of their prompts: the only road from a cache to the attention function."""
    keys._locus_prefix = prefix  # type: ignore[attr-defined]


def prefix_of(keys: Tensor) -> SharedPrefix | None:
    """The prompts' keys that :func:`attach_prefix` gave these keys, or None."""
    return getattr(keys, "_locus_prefix", None)


def shared_prefix_attention(query: Tensor, key: Tensor, value: Tensor, prefix: SharedPrefix, scale: float) -> Tensor:
    """(R, H, D) of single query positions (R, H, 1, D) whose rows share their prompts' keys: a prompt's are read once for all its rows.

    ``key``, ``value``: the rows' own (R, h, room, D). Scores and sums of 16-bit models are float32, as in a fused attention kernel.
    """
    (rows, heads, _, width), shared = query.shape, key.shape[1]
    each, prompts, length = heads // shared, prefix.keys.shape[0], prefix.keys.shape[2]
    full = rows == prompts * prefix.group

    def grouped(x: Tensor) -> Tensor:
        """(R, h, each, K) -> (B, h, G, each, K); places of rows that have left hold zeros."""
        if not full:
            x = x.new_zeros(prompts * prefix.group, *x.shape[1:]).index_copy(0, prefix.slot_R, x)
        return x.view(prompts, prefix.group, shared, each, -1).transpose(1, 2)

    def apart(x: Tensor) -> Tensor:
        """The way back."""
        x = x.transpose(1, 2).reshape(-1, shared, each, x.shape[-1])
        return x if full else x[prefix.slot_R]

    query = query.view(rows, shared, each, width) * scale
    before, own = (
        product_in_float32(grouped(query).flatten(2, 3), prefix.keys.transpose(2, 3)),
        product_in_float32(query, key.transpose(2, 3)),
    )
    scores = torch.cat([before.unflatten(2, (prefix.group, each)), grouped(own)], dim=-1)  # (B, h, G, each, P + room)
    weights = scores.masked_fill_(prefix.hidden_B11K[:, :, None], float("-inf")).softmax(dim=-1).to(value.dtype)
    of_prompt = product_in_float32(weights[..., :length].flatten(2, 3), prefix.values).unflatten(2, (prefix.group, each))
    return (apart(of_prompt) + product_in_float32(apart(weights[..., length:]), value)).to(value.dtype).reshape(rows, heads, width)


@cache
def _sums_in_float32(dtype: torch.dtype) -> bool:
    """Whether this torch multiplies batches of 16-bit matrices into float32 on CUDA; it does from 2.8 on."""
    one = torch.ones(1, 1, 1, device="cuda", dtype=dtype)
    try:
        return torch.bmm(one, one, out_dtype=torch.float32).dtype == torch.float32
    except (TypeError, RuntimeError):
        return False


def product_in_float32(a: Tensor, b: Tensor) -> Tensor:
    """(..., M, N) of (..., M, K) and (..., K, N), both of four dimensions: 16-bit factors, float32 sums. Other types are multiplied as they are."""
    if a.dtype.itemsize >= 4:
        return a @ b
    if a.device.type != "cuda" or not _sums_in_float32(a.dtype):
        return a.float() @ b.float()
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32).unflatten(0, a.shape[:2])


@dataclass(eq=False)
class Watch:
    """Attention of the last query position, layer by layer, mean over heads: each (R, K), in the order of ``modules``."""

    modules: dict[int, int]
    found: dict[int, Tensor]

    def see(self, module: Any, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> None:
        """Keep what a watched layer's last position attends to; computed for that one position, so memory grows with the keys."""
        layer = self.modules.get(id(module))
        if layer is None:
            return
        rows, heads, _, width = query.shape
        queries = query[:, :, -1].view(rows, key.shape[1], -1, width)
        scores = (queries @ key.transpose(2, 3)).float() * (width**-0.5 if scaling is None else scaling)  # (R, h, groups, K)
        if mask is not None:
            last = mask[:, :, -1, None]
            scores = scores.masked_fill(~last, float("-inf")) if last.dtype == torch.bool else scores + last
        self.found[layer] = scores.softmax(-1).view(rows, heads, -1).mean(1)


_watching: list[Watch] = []


@contextmanager
def watch(layers: Sequence[Any]) -> Iterator[Watch]:
    """While it lasts, ``found`` gets the last query position's attention of these attention layers (0 is the first)."""
    watch = Watch({id(layer): i for i, layer in enumerate(layers)}, {})
    _watching.append(watch)
    try:
        yield watch
    finally:
        _watching.remove(watch)


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """transformers' ``sdpa``, but for packed rows (their mask carries a :class:`PackedLayout`), for groups in decoding (their keys carry a
    :class:`SharedPrefix`) and for single query positions.

    ``sdpa`` with a mask copies keys and values once for every head that shares them, at every token. Folded, so that heads that share
    keys stand as positions of one head, they are read in place.

    Args:
        module: the attention layer.
        query: (R, H, S, D).
        key: (R, H / groups, S + cached, D).
        value: likewise.
        attention_mask: (R, 1, S, S + cached), or None.
        scaling: of the dot products.
        kwargs: passed on.

    Returns:
        (R, S, H, D), and no weights.
    """
    for watch in _watching:
        watch.see(module, query, key, attention_mask, scaling)
    rows, heads, length, width = query.shape
    shared = key.shape[1]
    layout = layout_of(attention_mask)
    if layout is not None and length == layout.source_RS.shape[1]:
        return packed_attention(query, key, value, layout, scaling).transpose(1, 2), None
    prefix = prefix_of(key)
    if prefix is not None:
        if length > 1:
            raise RuntimeError("a cache of groups takes one token at a time")
        scale = width**-0.5 if scaling is None else scaling
        return shared_prefix_attention(query, key, value, prefix, scale)[:, None], None
    if length > 1 or heads == shared or kwargs.get("dropout"):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[return-value]
    folded = query.view(rows, shared, heads // shared, width)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, width), None
