"""The progress bar, counting what it shows."""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's bar with a total in the unit it counts in: micro-steps. Lightning's own takes ``max_steps``, which are optimiser steps."""

    @property
    def total_train_batches(self) -> int | float:
        """Micro-steps until the epoch or the run ends."""
        batches = self.trainer.num_training_batches
        if self.trainer.max_steps is None or self.trainer.max_steps < 0:
            return batches
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        remaining = self.trainer.max_steps - self.trainer.global_step
        return min(batches, done + remaining * self.trainer.accumulate_grad_batches)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch}"
