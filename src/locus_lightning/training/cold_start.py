"""The cold start: a short supervised stage before reinforcement."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.data.source import CueSource
from locus_lightning.training.grpo import LocusModule
from locus_lightning.training.sft import SupervisedModule


@dataclass(frozen=True)
class ColdStart:
    """A short supervised stage before reinforcement, through the same data and backbone; it trains the vision side too.

    Args:
        steps: The number of optimiser steps.
        batch_size: The number of samples a step, on each process.
        learning_rate: The peak of AdamW's rate (betas 0.9, 0.98), with warm-up and cosine decay.
        source: The data that it is taught on; null is the run's own.
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 1.5e-3
    source: CueSource | None = None


def cold_start(cold: ColdStart, model: LocusModule, data: CueDataModule, trainer: L.Trainer) -> None:
    """Train ``model``'s backbone on right answers with a trainer of its own."""
    rate = cold.learning_rate
    print(f"cold start: {cold.steps} supervised steps, then reinforcement", flush=True)
    teacher = SupervisedModule(
        model.backbone, model.task, model.rollout, model.validation, train_vision=True,
        optimizer=lambda p: torch.optim.AdamW(p, lr=rate, betas=(0.9, 0.98), weight_decay=1e-2),
    )  # fmt: skip
    examples = CueDataModule(cold.source or data.source, cold.batch_size, data.val_batch_size, data.num_workers, data.seed + 1)
    L.Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.device_ids if isinstance(trainer.accelerator, CUDAAccelerator) else 1,
        max_steps=cold.steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        enable_progress_bar=trainer.progress_bar_callback is not None,
    ).fit(teacher, datamodule=examples)
    model.backbone.weights_on_disk = False
