"""Predictions as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from locus_lightning.callbacks.run_folder import run_folder


class PredictionFile(BasePredictionWriter):
    """Writes ``predictions.jsonl`` into the run folder, one answer a line, as they come; one file a process."""

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.path: Path | None = None

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append a batch."""
        if self.path is None:
            rank = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
            self.path = (run_folder(trainer) or Path()) / f"predictions{rank}.jsonl"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("")
        with self.path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in prediction)
