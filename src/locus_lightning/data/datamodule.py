"""Samples to the trainer: workers, order, position, quarantine."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from locus_lightning.data.sampler import FixedLoader, PacedLoader, ResumableSampler
from locus_lightning.data.source import CueBatch, CueDataset, CueSource, Position, Split
from locus_lightning.errors import ConfigError
from locus_lightning.types import CueSample

log = logging.getLogger(__name__)


class CueDataModule(L.LightningDataModule):
    """Cue samples for training and validation.

    Args:
        source: where samples come from.
        batch_size: prompts a rollout batch, on each process.
        val_batch_size: prompts decoded together in validation.
        num_workers: loader processes; the samples are the same for any number.
        seed: of the order and of everything random in the samples.
        val_source: where validation samples come from; null: the ``val`` split of ``source``.
    """

    def __init__(
        self,
        source: CueSource,
        batch_size: int = 32,
        val_batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        val_source: CueSource | None = None,
    ) -> None:
        super().__init__()
        if min(batch_size, val_batch_size) < 1 or num_workers < 0:
            raise ConfigError(
                f"data.batch_size is {batch_size}, val_batch_size {val_batch_size} (at least 1), num_workers {num_workers} (at least 0)."
            )
        self.val_source = val_source or source
        self.source, self.batch_size, self.val_batch_size = source, batch_size, val_batch_size
        self.num_workers, self.seed = num_workers, seed
        self.quarantine: dict[str, str] = {}
        self.datasets: dict[Split, CueDataset] = {}
        self._next = Position(0, 0)

    def setup(self, stage: str) -> None:
        """Check the source and open its splits."""
        self.source.check()
        self.val_source.check()
        splits: tuple[Split, ...] = ("train", "val") if stage == "fit" else ("val",)
        for split in splits:
            if split not in self.datasets:
                self.datasets[split] = (self.source if split == "train" else self.val_source).dataset(split, self.seed)
        if stage == "fit" and len(self.datasets["train"]) < self.batch_size * self._world():
            raise ConfigError(
                f"data.batch_size is {self.batch_size} on {self._world()} process(es) but there are only "
                f"{len(self.datasets['train'])} training samples; lower data.batch_size."
            )

    def train_dataloader(self) -> PacedLoader:
        """Prompts, paced to the micro-steps that the module takes for a rollout batch."""
        module = self.trainer.lightning_module if self.trainer else None
        steps = int(module.micro_steps(self.batch_size)) if hasattr(module, "micro_steps") else 1  # type: ignore[operator,union-attr]
        sampler = ResumableSampler(len(self.datasets["train"]), self.batch_size, self.seed, self._rank(), self._world())
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        length = len(sampler) * steps
        used = min(length, limit) if isinstance(limit, int) else int(length * limit)  # as Lightning counts an epoch
        start = self._next if self._next.micro_step < used else Position(self._next.epoch + 1, 0)
        return PacedLoader(self._loader("train", sampler), sampler, steps, start)

    def val_dataloader(self) -> FixedLoader:
        """Held-out samples in their own order, each once."""
        sampler = ResumableSampler(
            len(self.datasets["val"]), self.val_batch_size, self.seed, self._rank(), self._world(), shuffle=False, drop_last=False
        )
        return FixedLoader(self._loader("val", sampler))

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def _loader(self, split: Split, sampler: ResumableSampler) -> DataLoader[CueSample]:
        return DataLoader(
            self.datasets[split],
            batch_sampler=sampler,
            collate_fn=CueBatch,
            num_workers=self.num_workers,
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
        return batch

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Samples are pictures; the backbone brings their tensors to the device."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The pass over the data, micro-steps taken in it, and the quarantine list."""
        return {"epoch": self._next.epoch, "consumed": self._next.micro_step, "quarantine": dict(self.quarantine)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint stood."""
        self._next = Position(int(state_dict["epoch"]), int(state_dict["consumed"]))
        self.quarantine = dict(state_dict["quarantine"])
