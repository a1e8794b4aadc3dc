"""What several processes of a run tell one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def from_all(value: Any, world_size: int) -> list[Any]:
    """The value of every process, in the order of their ranks; all of them have to call this."""
    if world_size == 1:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(values, value)
    return values


def joined(lists: Mapping[str, Sequence[float]], world_size: int) -> dict[str, list[float]]:
    """Lists by name, those of all processes behind one another, names in order; all of them have to call this."""
    of_ranks = from_all(lists, world_size)
    return {
        name: [value for part in of_ranks for value in part.get(name, ())] for name in sorted({name for part in of_ranks for name in part})
    }
