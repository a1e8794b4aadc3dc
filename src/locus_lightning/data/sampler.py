"""The order of the samples, and a loader that brings prompts only when a rollout needs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch.utils.data import Sampler

from locus_lightning.data.order import SampleOrder
from locus_lightning.data.source import CueBatch, CueKey, Position
from locus_lightning.errors import LocusError


class ResumableSampler(Sampler[list[CueKey]]):
    """Batches of keys for one rank, in an order that may begin anywhere.

    Args:
        length: samples in the data set.
        batch_size: samples of a batch on this rank.
        order: of the samples of a pass, which leaves an incomplete last batch out. None is the data set's own, with an incomplete last batch
            (validation).
        rank: this process.
        world_size: processes; rank r takes the r-th slice of every global batch.
    """

    def __init__(self, length: int, batch_size: int, order: SampleOrder | None, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.batch_size, self.order = length, batch_size, order
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        batches, rest = divmod(self.length, self.wide)
        return batches + (0 if self.order is not None or not rest else 1)

    @property
    def wide(self) -> int:
        """Samples of a batch of all ranks."""
        return self.batch_size * self.world_size

    def keys(self, batch: int) -> list[CueKey]:
        """This rank's keys of a batch of the pass."""
        start, stop = batch * self.wide, min((batch + 1) * self.wide, self.length)
        whole = [CueKey(self.epoch, i) for i in range(start, stop)] if self.order is None else self.order.keys(self.epoch, start, stop)
        return whole[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[list[CueKey]]:
        """Batches from ``start`` on."""
        for batch in range(self.start, len(self)):
            yield self.keys(batch)


class FixedLoader:
    """Batches of held-out samples: the same ones always, whatever epoch the trainer is in.

    Args:
        loader: the loader of batches. Hidden from the trainer, which would set its sampler's epoch, or rebuild it.
    """

    def __init__(self, loader: Sized) -> None:
        self._loader: Any = loader

    def __len__(self) -> int:
        """Batches."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        """All batches, in order."""
        return _batches(self._loader)


def _batches(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader. A user's mistake that a worker process met is raised again as its own sentence: torch puts the worker's whole
    traceback into the message."""
    try:
        yield from loader
    except LocusError as error:
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        raise type(error)(str(error).rpartition(name)[2].strip()) from None


class PacedLoader:
    """Yields a batch of prompts, then ``steps - 1`` empty batches: one item a micro-step, each with its :class:`Position`.

    A rollout batch serves several micro-steps; this keeps Lightning's own batch count, accumulation and progress right. The loader alone
    decides which pass over the data is read: Lightning's epoch may be ahead after a run that ended inside a pass, so its epoch number is
    not taken.

    Args:
        loader: the loader of prompt batches.
        sampler: the batch sampler that ``loader`` was made with. Hidden from Lightning, which would set its epoch.
        steps: micro-steps a rollout batch takes.
        start: the first micro-step to yield. Later iterations begin a new pass.
    """

    def __init__(self, loader: Iterable[Any], sampler: ResumableSampler, steps: int, start: Position) -> None:
        self.steps = steps
        self._loader, self._sampler, self._next = loader, sampler, start

    def __len__(self) -> int:
        """Micro-steps of a whole pass."""
        return len(self._sampler) * self.steps

    def __iter__(self) -> Iterator[CueBatch]:
        epoch, begin = self._next
        self._next = Position(epoch + 1, 0)
        rollouts, within = divmod(begin, self.steps)
        self._sampler.set_epoch(epoch)
        self._sampler.start = rollouts + (1 if within else 0)
        batches = _batches(self._loader)
        for micro_step in range(begin, len(self)):
            position = Position(epoch, micro_step)
            if micro_step % self.steps:
                yield CueBatch((), position)
            else:
                batch = next(batches)
                batch.position = position
                keys = self._sampler.keys(micro_step // self.steps)
                batch.keys = keys if len(keys) == len(batch) else ()
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module keeps the position, which it reads off the batches that steps consumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take back; tells Lightning that a resume continues mid-epoch."""
