"""The folder of a run: ours, whatever the logger is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

_VERSIONED = (TensorBoardLogger, CSVLogger)
"""Loggers that number their runs; the run's folder is then theirs."""

_ATTRIBUTE = "_locus_run_folder"


def run_folder(trainer: L.Trainer) -> Path | None:
    """Where a run keeps its configuration, checkpoints, summary and model; None for ``fast_dev_run``.

    With a logger that numbers its runs (TensorBoard, CSV) it is the logger's folder. Otherwise it is ``runs/NAME/version_N`` with the next free
    number, where NAME is the logger's name, or ``locus``. All processes have to ask for it first at the same time.
    """
    if not hasattr(trainer, _ATTRIBUTE):
        made = None if trainer.fast_dev_run else _new_folder(trainer.logger)  # type: ignore[attr-defined]
        setattr(trainer, _ATTRIBUTE, trainer.strategy.broadcast(made))
    found: str | None = getattr(trainer, _ATTRIBUTE)
    return None if found is None else Path(found)


def use_run_folder(trainer: L.Trainer, folder: Path | None) -> None:
    """Let a run keep its files in this folder, or nowhere."""
    setattr(trainer, _ATTRIBUTE, None if folder is None else str(folder))


def _new_folder(logger: Any) -> str:
    if isinstance(logger, _VERSIONED):
        return str(logger.log_dir)
    name = getattr(logger, "name", None)
    root = Path("runs") / (name if isinstance(name, str) and name else "locus")
    taken = [int(path.name.removeprefix("version_")) for path in root.glob("version_*") if path.name.removeprefix("version_").isdigit()]
    return str(root / f"version_{max(taken, default=-1) + 1}")
