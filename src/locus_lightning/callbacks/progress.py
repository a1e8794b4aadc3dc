"""The progress bar, counting optimiser steps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's bar, but it counts optimiser steps in training. Lightning's own counts passes, with ``max_steps`` as their total."""

    @property
    def total_train_batches(self) -> int | float:
        """Optimiser steps until the epoch or the run ends."""
        passes = self.trainer.accumulate_grad_batches
        batches = self.trainer.num_training_batches
        if self.trainer.max_steps is not None and self.trainer.max_steps >= 0:
            taken = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
            batches = min(batches, taken + (self.trainer.max_steps - self.trainer.global_step) * passes)
        return batches if batches == float("inf") else -(-int(batches) // passes)

    def _update(self, progress_bar_id: Any, current: int, visible: bool = True, hard: bool = False) -> None:
        if progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            current = -(-current // self.trainer.accumulate_grad_batches)
        super()._update(progress_bar_id, current, visible, hard)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch}"
