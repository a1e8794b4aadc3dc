"""Checkpoints that can be continued, and a Ctrl-C that loses nothing."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

log = logging.getLogger(__name__)


class Checkpoints(L.Callback):
    """Keeps ``checkpoints/last.ckpt`` in the run folder: every so many steps, at the end, and on Ctrl-C.

    A file is complete or it is not there: it is written beside its place and then moved. The first Ctrl-C lets the optimiser
    step finish, saves and stops; a second one stops at once, at the price of the steps since the last save.

    Args:
        every_n_steps: The number of optimiser steps between saves. 0 saves at the end and on Ctrl-C only.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self.interrupted = False
        self._saved_step = -1
        self._previous: Any = None

    @staticmethod
    def path(trainer: L.Trainer) -> Path | None:
        """Where the checkpoint lies, or None for a run without a folder."""
        return Path(trainer.log_dir) / "checkpoints" / "last.ckpt" if trainer.log_dir and trainer.loggers else None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for Ctrl-C (main thread only, where signals can be caught)."""
        if threading.current_thread() is threading.main_thread() and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._previous = signal.signal(signal.SIGINT, self._on_sigint)

    def _on_sigint(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self._previous)
        print("\nStopping after this step; press Ctrl-C again to stop at once.", flush=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save at a step boundary when it is time, or when asked to stop."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stop = self.interrupted
        if trainer.world_size > 1:
            stop = bool(trainer.strategy.reduce_boolean_decision(stop, all=False))
        if stop:
            self.interrupted = True
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # no validation on the way out
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if stop or due:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end."""
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the checkpoint of this step, once."""
        path = self.path(trainer)
        if path is None or trainer.fast_dev_run or self._saved_step == trainer.global_step:  # type: ignore[attr-defined]
            return
        beside = path.with_name("writing.ckpt")
        trainer.save_checkpoint(beside, weights_only=False)  # the optimiser and all state too
        if trainer.is_global_zero:
            if path.is_dir():  # strategies that shard write folders
                shutil.rmtree(path)
            os.replace(beside, path)
        self._saved_step = trainer.global_step

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
