"""A step of decoding as one captured CUDA graph, so that the GPU does not wait for Python between its kernels."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

Step = Callable[[], None]


class Capture:
    """Runs steps: captured and replayed on CUDA, as they are elsewhere, or where capture fails.

    A step takes no arguments and gives no result. It reads and writes tensors that stay where they are. :meth:`changed` says that they have
    moved, so that the step is captured anew.

    Args:
        wanted: capture; False runs every step as it is.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._warm, self._failed = False, False
        self._replay: Step | None = None
        self._pool: object | None = None

    def changed(self) -> None:
        """The shapes or the memory of the step's tensors are new ones."""
        self._replay = None

    def run(self, step: Step) -> None:
        """One step."""
        if not self.wanted:
            step()
        elif self._replay is not None:
            self._replay()
        elif not self._warm:
            self._warm_up(step)
        else:
            try:
                self._replay = self._record(step)
            except Exception as cause:  # third-party kernels fail in their own ways
                if _out_of_memory(cause):
                    raise torch.cuda.OutOfMemoryError(str(cause)) from cause
                if self._failed:
                    self.wanted = False
                    _warn(cause)
                self._failed = True  # a kernel that is compiled for a new number of rows cannot be captured, and can after its first run
                step()
            else:
                self._failed = False
                self._replay()

    def _warm_up(self, step: Step) -> None:
        """The first step runs beside the current stream: libraries set themselves up at their first call, which cannot be captured."""
        self._warm = True
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            step()
        current.wait_stream(stream)

    def _record(self, step: Step) -> Step:
        """A step's kernels as a graph. Recording runs nothing. Random numbers come from the default generator, which every replay advances."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):  # type: ignore[arg-type]
            step()
        return graph.replay


def _out_of_memory(cause: BaseException | None) -> bool:
    """Whether memory ran out, whatever the end of a failed capture raised after that."""
    return cause is not None and (
        isinstance(cause, torch.cuda.OutOfMemoryError) or _out_of_memory(cause.__cause__) or _out_of_memory(cause.__context__)
    )


_warned = False
_OWN = re.compile(r"[/\\\\](torch[/\\\\]|rollout[/\\\\]capture)")
"""Files of torch and of this module: what a user can act upon is the line that called them."""


def _warn(cause: Exception) -> None:
    """Say once a process where capture failed."""
    global _warned
    if _warned:
        return
    _warned = True
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if not _OWN.search(frame.filename)]
    where = f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""
    log.warning(
        "a decoding step cannot be captured as a CUDA graph%s: %s. Decoding goes on uncaptured, several times slower; `capture: false` of the "
        "rollout engine turns this message off.",
        where, " ".join(str(cause).split())[:300],
    )  # fmt: skip
