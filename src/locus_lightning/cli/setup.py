"""What a training command does before it begins: the screen, Ctrl-C, and the settings that cannot work."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from locus_lightning.callbacks.stops import StopTraining
from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.errors import ConfigError
from locus_lightning.training.base import TaskModule

_asked: list[int] = []
"""Signals that came before training began."""


def stop_at_once_on_ctrl_c() -> None:
    """Until training begins, Ctrl-C ends the command at once: there is nothing to save. Lightning would turn a KeyboardInterrupt into exit 1."""

    _asked.clear()

    def stop(signum: int, frame: object) -> None:
        _asked.append(signum)
        raise StopTraining(signum)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, stop)


def stopped_early() -> int | None:
    """The signal that asked for a stop before training began, or None. Libraries that were being imported at that moment may have turned the
    exception into any other."""
    return _asked[0] if _asked else None


def started_by_lightning() -> bool:
    """Whether Lightning has started this process for another rank, and not torchrun, SLURM or the user."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0 and not {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & set(os.environ)


def end_with_the_launcher() -> None:
    """A process that Lightning has started ends when the one that started it is gone: nobody would ever talk to it again."""
    if not started_by_lightning():
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="launcher", daemon=True).start()


def refuse_nan(settings: Any, key: str = "") -> None:
    """Refuse numbers that are not finite, anywhere in a configuration.

    Raises:
        ConfigError: names the key.
    """
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            refuse_nan(value, f"{key}.{name}" if key else str(name))
    elif isinstance(settings, list | tuple):
        for value in settings:
            refuse_nan(value, key)
    elif isinstance(settings, float) and not math.isfinite(settings) and not (key.startswith("trainer.") and settings > 0):
        raise ConfigError(f"{key.replace('.init_args', '')} is {settings}; give a finite number.")


def check_before_loading(trainer: L.Trainer, model: TaskModule, data: CueDataModule, stage: str) -> None:
    """Refuse, in one sentence and before weights are loaded, what cannot work."""
    model.trainer, data.trainer = trainer, trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    model.setup(stage)
    data.setup(stage)


def set_up_screen() -> None:
    """Leave on the screen what a user can act upon."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("httpx", "httpx2", "transformers", "PIL", "torch", "tensorboard", "matplotlib", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)  # it advertises faster 4-bit products on a CPU at every start
    for pattern in (
        r".*does not have many workers.*",
        r".*module\(s\) in eval mode.*",
        r".*isinstance\(treespec.*",
        r".*infer the batch.*",
    ):
        warnings.filterwarnings("ignore", message=pattern)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
