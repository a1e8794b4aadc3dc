"""Loggers whose disk is full or gone: a warning, and curves with a gap, instead of the end of a run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, TensorBoardLogger

log = logging.getLogger("locus_lightning")

_AGAIN_S = 60.0
"""Seconds between two warnings, and between two attempts to begin a new event file."""

_METHODS = ("log_metrics", "log_hyperparams", "log_image", "save", "finalize")


class KeepLogging(L.Callback):
    """Lets loggers fail without ending the run. TensorBoard's writer never writes again after a failure, so a new event file is begun."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Guard every logger of the trainer, once."""
        for logger in trainer.loggers:
            if not getattr(logger, "_locus_guarded", False):
                logger._locus_guarded = True  # type: ignore[attr-defined]
                for name in _METHODS:
                    if callable(getattr(logger, name, None)):
                        setattr(logger, name, _guarded(logger, getattr(logger, name)))


def _guarded(logger: Logger, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        with disk_trouble_is_a_warning(logger):
            return method(*arguments, **named)

    return call


@contextmanager
def disk_trouble_is_a_warning(logger: Logger) -> Iterator[None]:
    """Whatever of the disk goes wrong in here is said, at most once a minute, and training goes on."""
    try:
        yield
    except (OSError, ValueError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__  # Lightning's TensorBoardLogger wraps what its writer raises
        if not isinstance(cause, OSError):
            raise
        now = monotonic()
        if now - getattr(logger, "_locus_warned", -_AGAIN_S) < _AGAIN_S:
            return
        logger._locus_warned = now  # type: ignore[attr-defined]
        log.warning("%s could not write (%s); training goes on, and the curves have a gap.", type(logger).__name__, cause)
        if isinstance(logger, TensorBoardLogger):
            logger._experiment = None
