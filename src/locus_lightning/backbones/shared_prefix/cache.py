"""A key-value cache for groups: a prompt's keys once for all its completions, and room for what they add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from locus_lightning.backbones.shared_prefix.attention import SharedPrefix, attach_prefix


class GroupLayer(DynamicLayer):
    """One layer's keys and values: the prompts' (B, H, P, D), and buffers for the rows' own (R, H, room, D).

    What :meth:`update` returns are the whole buffers; a mask that all layers share says what of them is filled. So every step of decoding
    runs the same operations on the same memory, and can be captured once and replayed.

    Args:
        keys: what the prompts filled, (B, H, P, D).
        values: likewise.
        rows: how many completions.
        room: tokens that will follow.
        place_1: where the next token's keys go, (1,) long; shared by all layers.
    """

    def __init__(self, keys: Any, values: Any, rows: int, room: int, place_1: Tensor) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.prompt_keys, self.prompt_values, self.place_1 = keys, values, place_1
        self.prefix: SharedPrefix | None = None
        # zeros, because what is not filled is multiplied by a weight of 0
        self.keys: Any
        self.values: Any
        self.keys, self.values = (x.new_zeros(rows, x.shape[1], room, x.shape[3]) for x in (keys, values))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Write a token's keys and values at the current place."""
        self.keys.index_copy_(2, self.place_1, key_states)
        self.values.index_copy_(2, self.place_1, value_states)
        keys = self.keys.view_as(self.keys)
        attach_prefix(keys, self.prefix)  # type: ignore[arg-type]
        return keys, self.values

    def get_seq_length(self) -> int:
        """The prompt's tokens. What follows is known to the mask alone."""
        return int(self.prompt_keys.shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a mask has to cover, and the first of them."""
        return self.get_seq_length() + query_length, 0


class GroupCache(Cache):
    """Such layers, and which of their keys are visible. :meth:`begin_step` and :meth:`end_step` stand around every forward pass.

    Args:
        filled: the cache that the prompts filled.
        padding_BP: True where prompts have no token; None where none is padded.
        group: completions of each prompt, G.
        room: tokens that each can take; :meth:`make_room` adds more.
    """

    def __init__(self, filled: Cache, padding_BP: Tensor | None, group: int, room: int) -> None:
        layers: Any = filled.layers
        prompts, _, self.prompt, _ = layers[0].keys.shape
        device = layers[0].keys.device
        self.group, self.room = group, room
        self.place_1 = torch.zeros(1, dtype=torch.long, device=device)
        hidden = torch.ones(prompts if padding_BP is not None else 1, 1, 1, self.prompt + room, dtype=torch.bool, device=device)
        hidden[..., : self.prompt] = False if padding_BP is None else padding_BP[:, None, None]
        self.hidden_B11K = hidden
        self.slot_R: Tensor = torch.arange(prompts * group, device=device)
        self.own = [GroupLayer(layer.keys, layer.values, prompts * group, room, self.place_1) for layer in layers]
        super().__init__(layers=self.own)  # type: ignore[arg-type]
        self._share()

    def _share(self) -> None:
        for layer in self.own:
            layer.prefix = SharedPrefix(layer.prompt_keys, layer.prompt_values, self.group, self.slot_R, self.hidden_B11K)

    def begin_step(self) -> None:
        """Make the place that the next token takes visible."""
        self.hidden_B11K.index_fill_(3, self.place_1 + self.prompt, 0)

    def end_step(self) -> None:
        """Go on to the next place."""
        self.place_1.add_(1)

    def make_room(self, room: int) -> None:
        """Let every row take ``room`` tokens in all."""
        more = room - self.room
        self.room, self.hidden_B11K = room, F.pad(self.hidden_B11K, (0, more), value=True)
        for layer in self.own:
            layer.keys, layer.values = (F.pad(x, (0, 0, 0, more)) for x in (layer.keys, layer.values))
        self._share()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.slot_R = self.slot_R[indices]
        for layer in self.own:
            layer.keys, layer.values = layer.keys[indices], layer.values[indices]
        self._share()


def for_groups(cache: Cache, mask_BP: Tensor, group: int, room: int, shares: bool) -> Cache:
    """A prefilled cache for ``group`` rows of each prompt: a :class:`GroupCache` where prompts can be kept once.

    Otherwise (the model's attention is not ours, so ``shares`` is false, or a layer is of another kind) the KV cache is repeated once per
    completion, and decoding needs a mask.
    """
    layers: Any = cache.layers
    if shares and all(type(layer) is DynamicLayer for layer in layers):
        return GroupCache(cache, None if bool(mask_BP.all()) else ~mask_BP.bool(), group, room)
    keep_rows(cache, torch.arange(len(mask_BP), device=mask_BP.device).repeat_interleave(group))
    return cache


def empty_cache(config: Any) -> Cache:
    """The cache that a text model's first pass fills; recurrent layers need one that knows them."""
    recurrent = "linear_attention" in (getattr(config, "layer_types", None) or ())
    return DynamicCache(config=config) if recurrent else DynamicCache()


def joined(caches: Sequence[Cache]) -> Cache:
    """One cache for the prompts of several, whose prompts are of one padded length. The first is filled and given; the others are emptied
    layer by layer, since keys and values are large."""
    for layers in zip(*(cache.layers for cache in caches), strict=True) if len(caches) > 1 else ():
        first: Any = layers[0]
        for name in ("keys", "values"):
            setattr(first, name, torch.cat([getattr(layer, name) for layer in layers]))
            for layer in layers[1:]:
                setattr(layer, name, None)
    return caches[0]


def keep_rows(cache: Cache, indices: Tensor) -> None:
    """Keep these rows of a cache, each as often as it is named."""
    if isinstance(cache, GroupCache):
        cache.batch_select_indices(indices)
        return
    for layer in cache.layers:
        if hasattr(layer, "batch_select_indices"):
            layer.batch_select_indices(indices)
        else:
            layer.reorder_cache(indices)  # type: ignore[arg-type] # recurrent layers
