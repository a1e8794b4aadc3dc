"""The state of a run between two optimiser steps: what a checkpoint holds beside weights and optimiser."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lightning as L


@dataclass(frozen=True)
class Boundary:
    """The state of a process after an optimiser step and before the next.

    Weights and optimiser do not change before the next step is taken, so with this a checkpoint can be written at any time until then: the
    unfinished step is done again by whoever continues. That is how a run can be stopped, or can fail, in the middle of a rollout and lose nothing.

    Args:
        step: optimiser steps taken.
        loops: Lightning's progress.
        rank_state: gives this process's generators and rollout batch, packed when it is called.
        data: state of the data module.
        validation_due: whether a validation belongs to this step and has not been finished.
    """

    step: int
    loops: dict[str, Any]
    rank_state: Callable[[], dict[str, Any]]
    data: dict[str, Any]
    validation_due: bool

    @classmethod
    def of(cls, trainer: L.Trainer, rank_state: Callable[[], dict[str, Any]], validation_due: bool) -> Boundary:
        """The state now; call it when a batch that completes an optimiser step has ended."""
        loops = trainer._checkpoint_connector._get_loops_state_dict()
        data = trainer.datamodule  # type: ignore[attr-defined]
        return cls(trainer.global_step, copy.deepcopy(loops), rank_state, data.state_dict() if data is not None else {}, validation_due)

    def validated(self, rank_state: Callable[[], dict[str, Any]]) -> Boundary:
        """The same once the validation of this step is done, which may have drawn random numbers."""
        return replace(self, rank_state=rank_state, validation_due=False)

    def write_into(self, checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
        """Put this state in the place of Lightning's own, which may be of the middle of a step or of a pass that was just closed."""
        checkpoint["loops"] = copy.deepcopy(self.loops)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and self.data:
            checkpoint[type(data).__qualname__] = dict(self.data)


def step_just_ended(trainer: L.Trainer) -> bool:
    """Whether the trainer is at the end of a batch that completed an optimiser step."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    now: Any = progress.current
    return bool(
        now.ready == now.processed == now.completed + 1 and (now.ready % trainer.accumulate_grad_batches == 0 or progress.is_last_batch)
    )


def validation_is_due(trainer: L.Trainer) -> bool:
    """Whether the trainer's interval asks for a validation after the batch that just ended (``trainer.val_check_interval``)."""
    loop, interval = trainer.fit_loop.epoch_loop, trainer.val_check_batch
    if interval is None or interval == float("inf"):
        return bool(loop.batch_progress.is_last_batch) and interval is not None
    epochs_between = trainer.check_val_every_n_epoch
    if epochs_between is not None and (trainer.current_epoch + 1) % epochs_between:
        return False
    batches_done = (loop.total_batch_idx if epochs_between is None else loop.batch_idx) + 1
    return batches_done % int(interval) == 0
