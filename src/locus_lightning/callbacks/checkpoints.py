"""Checkpoints that can be continued: the last ones and the best, written whole, never over good weights with broken ones."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L

from locus_lightning.callbacks.run_folder import run_folder
from locus_lightning.errors import ConfigError, LocusError
from locus_lightning.training.base import TaskModule
from locus_lightning.training.boundary import step_just_ended
from locus_lightning.training.resume import ResumableModule
from locus_lightning.training.sharding import joined_for_saving

log = logging.getLogger("locus_lightning")

_CANNOT_WRITE = (OSError, RuntimeError)
"""What a full or lost disk raises; torch reports it as a RuntimeError."""


class Checkpoints(L.Callback):
    """Keeps checkpoints in the run folder: ``last.ckpt`` and those before it, and ``best.ckpt``.

    A file is complete or it is not there: it is written beside its place and then moved. Beside each checkpoint of a run with an adapter lies
    the adapter alone as a folder that peft loads. A disk that is full or gone does not end the run: the next save tries again. Weights that are
    not finite are never saved.

    Args:
        every_n_steps: The number of optimiser steps between saves. 0 saves at the end and when the run is stopped only.
        keep_last: How many of the newest checkpoints are kept: ``last.ckpt``, ``previous-1.ckpt`` and so on.
        keep_best: Whether the checkpoint of the best validation is kept, by the task's headline figure (``val/iou`` for cue search).
    """

    def __init__(self, every_n_steps: int = 50, keep_last: int = 2, keep_best: bool = True) -> None:
        if every_n_steps < 0 or keep_last < 1:
            raise ConfigError(f"checkpoints: every_n_steps is {every_n_steps} (at least 0) and keep_last {keep_last} (at least 1).")
        self.every_n_steps, self.keep_last, self.keep_best = every_n_steps, keep_last, keep_best
        self.best: float | None = None
        self.failed: str | None = None
        self._saved_step = -1

    def state_dict(self) -> dict[str, Any]:
        """The best figure so far, so that a resumed run does not replace a better checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.best = state_dict.get("best")

    @staticmethod
    def folder(trainer: L.Trainer) -> Path | None:
        """Where checkpoints lie, or None for a run without a folder."""
        run = run_folder(trainer)
        return None if run is None else run / "checkpoints"

    # ---- when ------------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save at a step boundary when it is time."""
        if step_just_ended(trainer) and self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self.save(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the best."""
        if (
            not self.keep_best
            or trainer.sanity_checking
            or trainer.state.fn != "fit"
            or not isinstance(pl_module, TaskModule)
            or pl_module.stopping
        ):
            return
        score = trainer.callback_metrics.get(f"val/{pl_module.task.headline}")
        if score is not None and trainer.global_step and (self.best is None or float(score) > self.best):
            self.best = float(score)
            pl_module.on_validation_end()  # Lightning calls it after the callbacks' hooks; the checkpoint is to say that the validation is done
            self._write(trainer, pl_module, "best")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the end."""
        self.save(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save the last step boundary: until the optimiser steps, nothing of it has changed. With several processes only where all of them fail
        together, since saving takes all of them."""
        if not isinstance(pl_module, ResumableModule) or trainer.state.fn != "fit" or not pl_module.may_abandon:
            return
        if trainer.world_size > 1 and not pl_module.failed_together:
            return
        if trainer.global_step and self.save(trainer, pl_module):
            log.info("the state of step %d is saved; --ckpt_path last continues from there.", trainer.global_step)

    # ---- how -------------------------------------------------------------------------------------------------------

    def save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Write the checkpoint of this step, once; whether it is there."""
        if self._saved_step == trainer.global_step:
            return True
        if self._write(trainer, pl_module, "last"):
            self._saved_step = trainer.global_step
            return True
        return False

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> bool:
        folder = self.folder(trainer)
        if folder is None:
            return False
        broken = pl_module.broken_weight() if isinstance(pl_module, ResumableModule) else None
        if broken:
            log.error("step %d is not saved: the weight %s is not finite. The checkpoint of before stays.", trainer.global_step, broken)
            return False
        if isinstance(pl_module, ResumableModule):
            pl_module.saving = True
        try:
            return self._write_whole(trainer, pl_module, folder, name)
        finally:
            if isinstance(pl_module, ResumableModule):
                pl_module.saving = False

    def _write_whole(self, trainer: L.Trainer, pl_module: L.LightningModule, folder: Path, name: str) -> bool:
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)  # the optimiser and all state too
        self.failed = None
        beside = folder / f"{name}.writing"
        self._try(trainer, lambda: trainer.strategy.save_checkpoint(checkpoint, beside))
        trainer.strategy.barrier("Checkpoints")
        adapts = isinstance(pl_module, TaskModule) and pl_module.backbone.adapter_rank
        with joined_for_saving(pl_module.backbone, trainer.is_global_zero) if adapts else nullcontext():  # type: ignore[arg-type,union-attr]
            if trainer.is_global_zero and self.failed is None:
                self._try(trainer, lambda: self._put(pl_module, beside, folder, name))
        failed = trainer.strategy.broadcast(self.failed)
        if failed:
            with suppress(OSError):
                _remove(beside)
            log.warning("step %d could not be saved (%s); training goes on and the next save tries again.", trainer.global_step, failed)
        return not failed

    def _try(self, trainer: L.Trainer, write: Callable[[], None]) -> None:
        try:
            write()
        except _CANNOT_WRITE as cause:
            if isinstance(cause, RuntimeError) and not any(word in str(cause) for word in ("write", "File", "file", "space", "open")):
                raise
            self.failed = f"{type(cause).__name__}: {cause}".splitlines()[0]

    def _put(self, pl_module: L.LightningModule, beside: Path, folder: Path, name: str) -> None:
        """Move a written checkpoint to its place, the older ones one place further, and the adapter beside it."""
        adapter = folder / f"{name}-adapter.writing"
        if isinstance(pl_module, TaskModule) and pl_module.backbone.adapter_rank:
            pl_module.backbone.save_pretrained(adapter, {**pl_module.task.remember(), "trained_on": pl_module.trained_on()})
        if name == "last":
            places = ["last", *(f"previous-{i}" for i in range(1, self.keep_last))]
            for older, newer in zip(places[:0:-1], places[-2::-1], strict=True):
                for suffix in (".ckpt", "-adapter"):
                    _keep(folder / f"{newer}{suffix}", folder / f"{older}{suffix}")
        _move(beside, folder / f"{name}.ckpt")
        _move(adapter, folder / f"{name}-adapter")

    def check_saved(self, trainer: L.Trainer) -> None:
        """Refuse to end a run as a success whose last state could not be written.

        Raises:
            LocusError: says what failed.
        """
        if self.failed and self._saved_step != trainer.global_step:
            raise LocusError(
                f"the state of the last step could not be written to {self.folder(trainer)} ({self.failed}); the newest checkpoint there is of "
                f"step {max(0, self._saved_step)}. Make room, then continue with --ckpt_path last."
            )


def _move(source: Path, place: Path) -> None:
    """Move a file or a folder over what lies at its new place, where there is anything to move."""
    if not source.exists():
        return
    if place.is_dir():  # adapters, and checkpoints of strategies that shard, are folders
        shutil.rmtree(place)
    os.replace(source, place)


def _keep(source: Path, place: Path) -> None:
    """Let a file lie at a second place, so that it is at its first one until the newer file takes that; folders are moved."""
    if not source.is_file():
        _move(source, place)
        return
    second = place.with_name(f"{place.name}.writing")
    try:
        second.unlink(missing_ok=True)
        os.link(source, second)
    except OSError:  # a file system without links
        second = source
    os.replace(second, place)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
