"""Samples to the trainer: workers, order, position, quarantine."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from locus_lightning.data.order import SampleOrder, Shuffled
from locus_lightning.data.prepare import PreparingCollate, workers_are_forked
from locus_lightning.data.sampler import FixedLoader, PacedLoader, ResumableSampler
from locus_lightning.data.source import SPLITS, CueBatch, CueDataset, CueKey, CueSource, Position, Split
from locus_lightning.errors import ConfigError
from locus_lightning.ranks import from_all
from locus_lightning.tasks.base import Task
from locus_lightning.types import Question, RolloutGroup

log = logging.getLogger(__name__)

_LEAST_RECENT = 16
"""Samples that must have been used before a share of bad pictures is worth a word."""


class CueDataModule(L.LightningDataModule):
    """Cue samples for training and validation.

    Args:
        source: Where samples come from.
        batch_size: The number of prompts of a rollout batch on each process; null is as many as one optimiser step takes.
        val_batch_size: The number of prompts that are decoded together in validation.
        num_workers: The number of loader processes, which also prepare the pictures for the model. The samples are the same for any number.
        seed: The seed of the order and of everything random in the samples.
        val_source: Where validation samples come from; null is the ``val`` split of ``source``.
        order: The order of the training samples; null is ``Shuffled``.
    """

    def __init__(
        self,
        source: CueSource,
        batch_size: int | None = None,
        val_batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        val_source: CueSource | None = None,
        order: SampleOrder | None = None,
    ) -> None:
        super().__init__()
        if min(1 if batch_size is None else batch_size, val_batch_size) < 1 or num_workers < 0:
            raise ConfigError(
                f"data.batch_size is {batch_size}, val_batch_size {val_batch_size} (at least 1), num_workers {num_workers} (at least 0)."
            )
        self.val_source = val_source or source
        self.source, self.batch_size, self.val_batch_size = source, batch_size, val_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.order: SampleOrder = order or Shuffled()
        self.quarantine: dict[str, str] = {}
        self.datasets: dict[Split, CueDataset] = {}
        self._next, self._steps = Position(0, 0), 1
        self._recent: deque[bool] = deque(maxlen=200)
        self._warned_at = 0.0

    def setup(self, stage: str) -> None:
        """Check the source and open its splits."""
        self.source.check()
        self.val_source.check()
        splits: tuple[Split, ...] = ("train", "val") if stage == "fit" else ("val",)
        for split in splits:
            if split not in self.datasets:
                self.datasets[split] = (self.source if split == "train" else self.val_source).dataset(split, self.seed)
        if stage == "fit" and self.batch_size is not None:
            self._enough_for(self.batch_size)

    def _enough_for(self, batch_size: int) -> int:
        """The batch size, once it is known that the data holds one batch."""
        if len(self.datasets["train"]) < batch_size * self._world():
            raise ConfigError(
                f"data.batch_size is {batch_size} on {self._world()} process(es) but there are only {len(self.datasets['train'])} training "
                "samples; lower data.batch_size."
            )
        return batch_size

    @property
    def prompts(self) -> int:
        """Prompts of a rollout batch on each process: ``batch_size``, or 32 where neither it nor a training module says."""
        return 32 if self.batch_size is None else self.batch_size

    def train_dataloader(self) -> PacedLoader:
        """Prompts, paced to the micro-steps that the module takes for a rollout batch."""
        module = self.trainer.lightning_module if self.trainer else None
        batch_size = self._enough_for(self.prompts)
        steps = int(module.micro_steps(batch_size)) if hasattr(module, "micro_steps") else 1  # type: ignore[operator,union-attr]
        length = len(self.datasets["train"])
        sampler = ResumableSampler(length, batch_size, self.order, self._rank(), self._world())
        ahead = self.num_workers * 2 + 2  # batches that workers and Lightning fetch, and the one in use
        self.order.begin(self.datasets["train"], self.seed, len(sampler) * sampler.wide, (ahead + 1) * sampler.wide)
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        length = len(sampler) * steps
        used = min(length, limit) if isinstance(limit, int) else int(length * limit)  # as Lightning counts an epoch
        start = self._next if self._next.micro_step < used else Position(self._next.epoch + 1, 0)
        self._steps = steps
        return PacedLoader(self._loader("train", sampler), sampler, steps, start)

    def task_dataset(self, split: Split, task: Task | None) -> CueDataset:
        """The samples of a split as a task makes them of what the source gives."""
        return TaskDataset(self.datasets[split], task, self.seed, split) if task is not None else self.datasets[split]

    def restrict(self, items: Sequence[int]) -> None:
        """Train on these samples of the first epoch alone, over and over, under the length of all: to measure the longest prompts."""
        self.datasets["train"] = _Restricted(self.datasets["train"], items)

    def val_dataloader(self) -> FixedLoader:
        """Held-out samples in their own order, each once."""
        sampler = ResumableSampler(len(self.datasets["val"]), self.val_batch_size, None, self._rank(), self._world())
        return FixedLoader(self._loader("val", sampler))

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def _loader(self, split: Split, sampler: ResumableSampler) -> DataLoader[Any]:
        module = self.trainer.lightning_module if self.trainer else None
        prepare = module.prepare_in_workers(split) if hasattr(module, "prepare_in_workers") else None  # type: ignore[operator,union-attr]
        collate: Any = CueBatch
        if prepare is not None and self.num_workers > 0 and workers_are_forked():
            collate = PreparingCollate(prepare)
        return DataLoader(
            self.task_dataset(split, getattr(module, "task", None)),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            prefetch_factor=None if collate is CueBatch else 1,  # a prepared batch of 64 photos is about a gigabyte
            generator=torch.Generator(),  # not the global one: iterating must not disturb rollouts
        )

    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    # ---- position and quarantine: kept by what steps consumed ------------------------------------------------------

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Called once a step is about to use ``batch``: count it, and note images that had to be replaced."""
        if batch.position is not None:
            self._next = Position(batch.position.epoch, batch.position.micro_step + 1)
        for sample in batch:
            for path, reason in sample.quarantined:
                if path not in self.quarantine:
                    self.quarantine[path] = reason
                    log.warning("quarantined %s: %s (%d so far)", path, reason, len(self.quarantine))
        self._watch_share_of_bad(batch)
        return batch

    def _watch_share_of_bad(self, samples: Iterable[Any]) -> None:
        """Warn while it is early where more and more pictures cannot be used: a disk or a mount may be going."""
        self._recent.extend(bool(sample.quarantined) for sample in samples)
        share = sum(self._recent) / max(1, len(self._recent))
        passed = [threshold for threshold in (0.1, 0.25, 0.5) if share >= threshold > self._warned_at]
        if passed and len(self._recent) >= _LEAST_RECENT:
            self._warned_at = passed[-1]
            log.warning(
                "%.0f %% of the last %d samples could not use their picture; check the picture folder.", 100 * share, len(self._recent)
            )

    def note_outcomes(self, batch: CueBatch, groups: Sequence[RolloutGroup]) -> None:
        """Tell the order how a rollout batch went; all processes have to call this."""
        if batch.position is None or not self.order.learns:
            return
        if len(batch.keys) != len(groups):
            raise ConfigError(
                f"data.order is {type(self.order).__name__}, which needs one sample for each place in the data; this source gives several at once."
            )
        pairs = zip(batch.keys, groups, strict=True)
        own = [(key.item, tuple(completion.score for completion in group.completions)) for key, group in pairs if not group.failed]
        outcomes = [pair for one in from_all(own, self._world()) for pair in one]
        self.order.note(batch.position.epoch, batch.position.micro_step // self._steps * self.prompts * self._world(), outcomes)

    def quarantined_by_all(self) -> dict[str, str]:
        """Path and reason of every picture that any process had to replace; all of them have to call this."""
        return {path: reason for one in from_all(self.quarantine, self._world()) for path, reason in one.items()}

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Samples are pictures; the backbone brings their tensors to the device."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The pass over the data, micro-steps taken in it, and the quarantine list."""
        return {
            "epoch": self._next.epoch,
            "consumed": self._next.micro_step,
            "quarantine": dict(self.quarantine),
            "order": self.order.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint stood."""
        self._next = Position(int(state_dict["epoch"]), int(state_dict["consumed"]))
        self.quarantine = dict(state_dict["quarantine"])
        if state_dict.get("order"):
            self.order.load_state_dict(state_dict["order"])


class TaskDataset(CueDataset):
    """Samples as a task makes them of what a source gives. Plain questions, which supervised data may hold, stay as they are.

    Args:
        dataset: of the source.
        task: makes its own samples.
        seed: with epoch and index the seed of the task's generator.
        split: likewise.
    """

    _STREAM = 0x7A5C

    def __init__(self, dataset: CueDataset, task: Task, seed: int, split: Split) -> None:
        self.dataset, self.task, self.seed, self.split = dataset, task, seed, split

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: CueKey) -> Any:
        item = self.dataset[key]
        if type(self.task).sample is Task.sample:
            return item
        rng = np.random.default_rng([self._STREAM, self.seed, SPLITS.index(self.split), *key])
        several = item if isinstance(item, tuple) else (item,)
        samples = tuple(one if isinstance(one, Question) else self.task.sample(one, rng) for one in several)
        return samples if isinstance(item, tuple) else samples[0]


class _Restricted(CueDataset):
    """A few samples over and over, under the length of all."""

    def __init__(self, dataset: CueDataset, items: Sequence[int]) -> None:
        self.dataset, self.items = dataset, items

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: CueKey) -> Any:
        return self.dataset[CueKey(0, self.items[key.item % len(self.items)])]

    def cue_share(self, item: int) -> float | None:
        return self.dataset.cue_share(self.items[item % len(self.items)])
