"""Prompts prepared in a loader's workers: images are resized and turned into tensors there, while the model works on the batch before."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from locus_lightning.data.source import CueBatch
from locus_lightning.types import Prepared, Sample

Prepare = Callable[[Sequence[Any]], "Sequence[Prepared] | None"]
"""From samples to their prepared prompts, or None."""


class PreparingCollate:
    """Makes batches in a loader's workers, prompts prepared.

    Args:
        prepare: prepares the prompts of samples. It needs no weights, but what it belongs to may hold them: workers have to be forked.
    """

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare

    def __call__(self, samples: Iterable[Sample | tuple[Sample, ...]]) -> CueBatch:
        """A batch."""
        batch = CueBatch(samples)
        prepared = self._prepare(list(batch))
        if prepared is not None:
            batch.prepared = FewTensors(prepared)
        return batch


def workers_are_forked() -> bool:
    """Whether workers get the parent's objects as they are. Where they are spawned, all would be copied to them, the weights too."""
    return multiprocessing.get_start_method() == "fork"


class FewTensors(Sequence[Prepared]):
    """Prepared prompts that travel between processes as one tensor for each type of number: every tensor takes a file descriptor, of which a
    process has about a thousand.

    Args:
        prepared: the prompts.
    """

    def __init__(self, prepared: Iterable[Prepared]) -> None:
        self._prepared = list(prepared)

    def __len__(self) -> int:
        return len(self._prepared)

    def __getitem__(self, index: Any) -> Any:
        return self._prepared[index]

    def __reduce__(self) -> tuple[Any, ...]:
        flat: dict[torch.dtype, list[Tensor]] = {}
        rows = []
        for one in self._prepared:
            places = {}
            for name, value in one.inputs.items():
                flat.setdefault(value.dtype, []).append(value.reshape(-1))
                places[name] = (value.dtype, tuple(value.shape))
            rows.append((one.text, one.content, places))
        return _unpack, (rows, {dtype: torch.cat(parts) for dtype, parts in flat.items()})


def _unpack(rows: Sequence[tuple[str, Any, dict[str, tuple[torch.dtype, tuple[int, ...]]]]], flat: dict[torch.dtype, Tensor]) -> FewTensors:
    """The other way: views of the few tensors, in the order in which they were joined."""
    starts = dict.fromkeys(flat, 0)
    prepared = []
    for text, content, places in rows:
        inputs = {}
        for name, (dtype, shape) in places.items():
            start, size = starts[dtype], int(torch.Size(shape).numel())
            inputs[name] = flat[dtype][start : start + size].view(shape)
            starts[dtype] = start + size
        prepared.append(Prepared(text, inputs, content))
    return FewTensors(prepared)
