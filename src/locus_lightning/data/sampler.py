"""The order of the samples, and a loader that brings prompts only when a rollout needs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from locus_lightning.data.source import CueKey

NO_PROMPTS: tuple[()] = ()
"""What a training step receives while the last rollout is still being used."""


class ResumableSampler(Sampler[list[CueKey]]):
    """Shuffled batches of keys for one rank; the order depends on seed and epoch alone.

    Args:
        length: samples in the data set.
        batch_size: samples of a batch on this rank; an incomplete last batch is dropped.
        seed: of the order.
        rank: this process.
        world_size: processes; rank r takes the r-th slice of every global batch.
        shuffle: or keep the order of the data set.
        drop_last: drop the incomplete last batch, or keep it (validation).
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, shuffle: bool = True, drop_last: bool = True
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.shuffle, self.drop_last = rank, world_size, shuffle, drop_last
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Order of the next pass; Lightning calls this at every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        whole, rest = divmod(self.length, self.batch_size * self.world_size)
        return whole + (0 if self.drop_last or not rest else 1)

    def __iter__(self) -> Iterator[list[CueKey]]:
        """Batches from ``start`` on."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length) if self.shuffle else np.arange(self.length)
        wide = self.batch_size * self.world_size
        for b in range(self.start, len(self)):
            mine = order[b * wide : (b + 1) * wide][self.rank :: self.world_size]
            yield [CueKey(self.epoch, int(i)) for i in mine]


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
        return iter(self._loader)


class PacedLoader:
    """Yields a batch of prompts, then ``steps - 1`` times :data:`NO_PROMPTS`: one item a micro-step.

    A rollout batch serves several micro-steps; this keeps Lightning's own batch count, accumulation and progress right.

    Args:
        loader: the loader of prompt batches.
        sampler: the batch sampler that ``loader`` was made with.
        steps: micro-steps a rollout batch takes.
        epoch: epoch of the order.
        consumed: micro-steps of this epoch that were already taken (by steps, not by fetching: Lightning fetches ahead).
    """

    def __init__(self, loader: Iterable[Any], sampler: ResumableSampler, steps: int, epoch: int = 0, consumed: int = 0) -> None:
        self.loader, self.sampler, self.steps, self.consumed = loader, sampler, steps, consumed
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Micro-steps of a whole epoch."""
        return len(self.sampler) * self.steps

    def __iter__(self) -> Iterator[Any]:
        begun, within = divmod(self.consumed, self.steps)
        self.consumed = 0
        self.sampler.start = begun + (1 if within else 0)
        if within:
            yield from [NO_PROMPTS] * (self.steps - within)
        for batch in self.loader:
            yield batch
            yield from [NO_PROMPTS] * (self.steps - 1)
        self.sampler.start = 0

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position belongs to the data module, which counts what steps consumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to take back; tells Lightning that a resume continues mid-epoch."""
