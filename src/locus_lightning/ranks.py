"""What several processes of a run tell one another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any


def this_rank() -> int:
    """The number of this process among those that torch.distributed knows; 0 where it is the only one."""
    import torch.distributed as together

    return together.get_rank() if together.is_available() and together.is_initialized() else 0


def world_size() -> int:
    """How many processes torch.distributed knows; 1 where it is not in use."""
    import torch.distributed as together

    return together.get_world_size() if together.is_available() and together.is_initialized() else 1


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


@contextmanager
def started_together() -> Iterator[tuple[int, int]]:
    """Rank and number of the processes that torchrun has started for a command; they can talk to one another while the context lasts. A command
    that was started alone is the only one. Each takes the GPU of its own number."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # what is exchanged are answers, not tensors; one share of a benchmark may take hours longer than another
    torch.distributed.init_process_group("gloo", timeout=timedelta(hours=6))
    try:
        yield torch.distributed.get_rank(), world
    finally:
        torch.distributed.destroy_process_group()
