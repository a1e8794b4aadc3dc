"""Memory as torch's allocator counts it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


class Gauge:
    """Bytes that torch's allocator has out at the peak, above those at the start: on a GPU as CUDA counts them, else by the profiler."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            with _quiet():
                self._profiler.start()

    def stop(self) -> int:
        """The peak since the start."""
        if self._cuda:
            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated()) - self._before
        with _quiet():
            self._profiler.stop()
        held = peak = 0
        for event in self._profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                held += event.nbytes()  # type: ignore[union-attr]
                peak = max(peak, held)
        return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the profiler's own library writes to the error stream, past Python's."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def allocated_peak(work: Callable[[], object]) -> int:
    """Bytes that the allocator had out at the peak of ``work``, less those before it."""
    gauge = Gauge()
    work()
    return gauge.stop()


def bytes_of(parameters: Any) -> int:
    """Bytes of some parameters."""
    return sum(p.numel() * p.element_size() for p in parameters)


def quantisation_bytes(model: Any) -> int:
    """Bytes of the scales beside 4-bit weights."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            total += sum(t.numel() * t.element_size() for t in (state.absmax, state.code) if t is not None)
            state = state.state2
    return total
