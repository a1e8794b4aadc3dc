"""A key-value cache with room for the completions: decoding writes into it instead of copying it at every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer's keys and values (rows, heads, length, D): views of buffers that are longer than what is filled.

    Args:
        keys: what the prompts filled, (rows, heads, P, D).
        values: likewise.
        repeats: rows made of each row.
        room: tokens that will follow.
    """

    def __init__(self, keys: Any, values: Any, repeats: int, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.length = keys.shape[2]
        self._buffers = tuple(self._with_room(x, repeats, room) for x in (keys, values))
        self._view()

    @staticmethod
    def _with_room(x: Tensor, repeats: int, room: int) -> Tensor:
        buffer = x.new_empty(x.shape[0] * repeats, x.shape[1], x.shape[2] + room, x.shape[3])
        buffer[:, :, : x.shape[2]] = x.repeat_interleave(repeats, dim=0)
        return buffer

    def _view(self) -> None:
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Write behind what is filled."""
        end = self.length + key_states.shape[2]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : end] = states
        self.length = end
        self._view()
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self._buffers = tuple(buffer[indices] for buffer in self._buffers)
        self._view()


def with_room(cache: Cache, repeats: int, room: int) -> Cache:
    """A prefilled cache, every row repeated, with room for ``room`` more tokens; layers of another kind grow as they do."""
    layers: list[Any] = []
    layer: Any
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layers.append(RoomyLayer(layer.keys, layer.values, repeats, room))
        else:
            layer.batch_repeat_interleave(repeats)
            layers.append(layer)
    return Cache(layers=layers)
