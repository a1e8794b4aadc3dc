"""The folder of a run: ours, whatever the logger is."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path
from typing import IO, Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from locus_lightning.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NUMBERING = (TensorBoardLogger, CSVLogger)
"""Loggers that number their runs; the run's folder is then theirs."""

_ATTRIBUTE = "_locus_run_folder"


def run_folder(trainer: L.Trainer) -> Path | None:
    """Where a run keeps its configuration, checkpoints, summary and model; None for ``fast_dev_run``.

    With a logger that numbers its runs (TensorBoard, CSV) it is the logger's folder. Otherwise it is ``runs/NAME/version_N`` with the next free
    number, where NAME is the logger's name, or ``locus``. All processes have to ask for it first at the same time.
    """
    if not hasattr(trainer, _ATTRIBUTE):
        new_folder = None if trainer.fast_dev_run else _new_folder(trainer.logger)  # type: ignore[attr-defined]
        setattr(trainer, _ATTRIBUTE, trainer.strategy.broadcast(new_folder))
    folder: str | None = getattr(trainer, _ATTRIBUTE)
    return None if folder is None else Path(folder)


def use_run_folder(trainer: L.Trainer, folder: Path | None) -> None:
    """Let a run keep its files in this folder, or nowhere."""
    setattr(trainer, _ATTRIBUTE, None if folder is None else str(folder))


def own_root(name: str | None) -> Path:
    """Where the runs of a logger lie that does not number them."""
    return Path("runs") / (name or "locus")


def _new_folder(logger: Any) -> str:
    if isinstance(logger, NUMBERING):
        return str(logger.log_dir)
    name = getattr(logger, "name", None)
    root = own_root(name if isinstance(name, str) else None)
    versions = [int(path.name.removeprefix("version_")) for path in root.glob("version_*") if path.name.removeprefix("version_").isdigit()]
    return str(root / f"version_{max(versions, default=-1) + 1}")


def check_writable(trainer: L.Trainer) -> None:
    """Refuse a run whose folder cannot be made or written to.

    Raises:
        ConfigError: names the folder and the reason.
    """
    folder = run_folder(trainer)
    if folder is None or not trainer.is_global_zero:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.writable"
        probe.touch()
        probe.unlink()
    except OSError as cause:
        raise ConfigError(
            f"the run folder {folder} cannot be written to ({cause.strerror}); choose another save_dir of trainer.logger."
        ) from cause


class RunLock(L.Callback):
    """Keeps a second training out of a run's folder: both would write the same checkpoint. The lock ends with the process, however it ends."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the lock.

        Raises:
            ConfigError: another process has it.
        """
        folder = run_folder(trainer) if stage == "fit" else None
        if folder is None or self._file is not None or not trainer.is_global_zero or fcntl is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            if cause.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
            raise ConfigError(f"{folder} is being trained in by {holder}; wait for it, or end it first.") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        self._file = file

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the lock back."""
        if stage == "fit":
            self._release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the lock back; Lightning does not tear callbacks down then."""
        self._release()

    def _release(self) -> None:
        if self._file is not None:
            Path(self._file.name).unlink(missing_ok=True)
            self._file.close()
            self._file = None
