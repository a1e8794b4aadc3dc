"""What the model sees and answers, as pictures and text in the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L

from locus_lightning.callbacks.media import log_media
from locus_lightning.tasks.pictures import contact_sheet
from locus_lightning.training.grpo import LocusModule
from locus_lightning.types import RolloutGroup


class CuePictures(L.Callback):
    """Every so many optimiser steps, one picture of a few rollout groups as their task draws them; and the best and worst completion as text.

    Args:
        every_n_steps: The number of optimiser steps between pictures; 0 is none.
        groups: The number of groups in a picture.
    """

    def __init__(self, every_n_steps: int = 50, groups: int = 4) -> None:
        self.every_n_steps, self.groups = every_n_steps, groups
        self._last = -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw when a rollout batch was just collected and it is time."""
        if not (batch and self.every_n_steps and isinstance(pl_module, LocusModule) and trainer.is_global_zero):
            return
        if self._last >= 0 and trainer.global_step - self._last < self.every_n_steps:
            return
        self._last = trainer.global_step
        chosen = pl_module.groups[: self.groups]
        log_media(trainer, "cues", contact_sheet(pl_module.task, chosen), "completions", completions_table(chosen), self._last)


def completions_table(groups: Sequence[RolloutGroup]) -> list[list[str]]:
    """Best and worst completion of every group; the header first."""
    rows = [["sample", "which", "reward", "answer", "text"]]
    for group in groups:
        order = sorted(range(len(group.rewards)), key=lambda i: group.rewards[i])
        for which, i in (("best", order[-1]), ("worst", order[0])):
            completion = group.completions[i]
            rows.append([str(group.sample.id), which, f"{group.rewards[i]:.2f}", _rounded(completion.answer), completion.text])
    return rows


def _rounded(answer: Any) -> str:
    if answer is None:
        return "none"
    if isinstance(answer, tuple):
        return ", ".join(_rounded(value) for value in answer)
    return f"{answer:.0f}" if isinstance(answer, float) else str(answer)
