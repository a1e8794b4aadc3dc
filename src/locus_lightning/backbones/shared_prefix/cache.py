"""A key-value cache for groups: a prompt's keys once for all its completions, and room for what they add."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from locus_lightning.backbones.shared_prefix.attention import SharedPrefix, attach_prefix


class GroupLayer(DynamicLayer):
    """One layer's keys and values: the prompts' (B, H, P, D), and buffers for the rows' own (R, H, room, D).

    What :meth:`update` returns are the rows' own keys and values; the prompts' come along as the keys, for
    :func:`~locus_lightning.backbones.shared_prefix.attention.attention`.

    Args:
        keys: what the prompts filled, (B, H, P, D).
        values: likewise.
        mask_B11P: True where the prompts have tokens; None where none is padded.
        group: rows of each prompt, G.
        room: tokens that will follow.
    """

    def __init__(self, keys: Any, values: Any, mask_B11P: Tensor | None, group: int, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        rows = keys.shape[0] * group
        self.prefix = SharedPrefix(keys, values, group, torch.arange(rows, device=keys.device), mask_B11P)
        self.length = 0
        self._buffers = tuple(x.new_empty(rows, x.shape[1], room, x.shape[3]) for x in (keys, values))
        self._view()

    def _view(self) -> None:
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Write behind what is filled."""
        end = self.length + key_states.shape[2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self.length = end
        self._view()
        attach_prefix(self.keys, self.prefix)  # type: ignore[arg-type]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens that are filled, the prompt's included."""
        return int(self.prefix.keys.shape[2]) + self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a mask has to cover, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self._buffers = tuple(buffer[indices] for buffer in self._buffers)
        self.prefix = replace(self.prefix, slot_R=self.prefix.slot_R[indices])
        self._view()


def for_groups(cache: Cache, mask_BP: Tensor, group: int, room: int, shares: bool) -> tuple[Cache, bool]:
    """A prefilled cache for ``group`` rows of each prompt and ``room`` more tokens, and whether prompts are kept once.

    Where prompts are kept once, the cache knows the padding, and decoding needs no mask. Otherwise (the model's attention is not ours, so
    ``shares`` is false, or a layer is of another kind) the KV cache is repeated once per completion.
    """
    layers: Any = cache.layers
    if shares and all(type(layer) is DynamicLayer for layer in layers):
        padded = None if bool(mask_BP.all()) else mask_BP.bool()[:, None, None]
        return Cache(layers=[GroupLayer(layer.keys, layer.values, padded, group, room) for layer in layers]), True
    for layer in layers:
        layer.batch_repeat_interleave(group)
    return cache, False
