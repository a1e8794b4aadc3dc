"""Progress in optimiser steps: a bar on a terminal, a line every so often elsewhere."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar

from locus_lightning.training.base import TaskModule
from locus_lightning.training.boundary import step_just_ended

log = logging.getLogger("locus_lightning")


class Progress(RichProgressBar):
    """Lightning's bar, but it counts optimiser steps in training. Lightning's own counts passes, with ``max_steps`` as their total."""

    @property
    def total_train_batches(self) -> int | float:
        """Optimiser steps until the epoch or the run ends."""
        passes = self.trainer.accumulate_grad_batches
        batches = self.trainer.num_training_batches
        if self.trainer.max_steps is not None and self.trainer.max_steps >= 0:
            done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            batches = min(batches, done + (self.trainer.max_steps - self.trainer.global_step) * passes)
        return batches if batches == float("inf") else -(-int(batches) // passes)

    def _update(self, progress_bar_id: Any, current: int, visible: bool = True, hard: bool = False) -> None:
        if progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            current = -(-current // self.trainer.accumulate_grad_batches)
        super()._update(progress_bar_id, current, visible, hard)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch}"


class ProgressLines(L.Callback):
    """A line every so often with step, headline figure, seconds a step and time left: for log files, ``nohup`` and SLURM, where no bar shows.

    Args:
        every_s: The least seconds between two lines.
    """

    def __init__(self, every_s: float = 30.0) -> None:
        self.every_s = every_s
        self._last = self._begun = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._begun, self._first_step, self._last = monotonic(), trainer.global_step, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Say where the run is."""
        now = monotonic()
        if not step_just_ended(trainer) or not trainer.is_global_zero or now - self._last < self.every_s:
            return
        self._last = now
        done, total = trainer.global_step, trainer.estimated_stepping_batches
        pace = (now - self._begun) / max(1, done - self._first_step)
        of, left = ("", "") if total == float("inf") else (f" of {total:,.0f}", f", {duration((total - done) * pace)} left")
        headline = pl_module.task.headline if isinstance(pl_module, TaskModule) else ""
        score = trainer.callback_metrics.get(headline)
        shown = f", {headline} {float(score):.3f}" if score is not None else ""
        log.info("step %s%s%s, %.2f s a step%s", f"{done:,}", of, shown, pace, left)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what a validation gave."""
        headline = f"val/{pl_module.task.headline}" if isinstance(pl_module, TaskModule) else ""
        score = trainer.callback_metrics.get(headline)
        if score is not None and trainer.is_global_zero and not trainer.sanity_checking and trainer.state.fn == "fit":
            log.info("step %s: %s %.3f", f"{trainer.global_step:,}", headline, float(score))


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
