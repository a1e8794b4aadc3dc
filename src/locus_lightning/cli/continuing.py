"""Which run ``--ckpt_path last`` means, and what in its folder must not be overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from locus_lightning.backbones.open import read_checkpoint
from locus_lightning.callbacks.run_folder import NUMBERING, own_root
from locus_lightning.errors import CheckpointError


def runs_of(logger: Any) -> Path:
    """The folder under which the configured logger's runs lie."""
    first = logger[0] if isinstance(logger, list) and logger else logger
    init = first.get("init_args", {}) if isinstance(first, Namespace | dict) else {}
    if isinstance(first, Namespace | dict) and not numbers_its_runs(first):
        return own_root(init.get("name"))
    return Path(init.get("save_dir") or "runs") / (init.get("name") or ("locus" if not init else ""))


def numbers_its_runs(logger: Namespace | dict[str, Any]) -> bool:
    """Whether a logger, as it is configured, gives each run a folder of its own."""
    return str(logger.get("class_path", "")).endswith(tuple(kind.__name__ for kind in NUMBERING))


def last_checkpoint(logger: Any) -> Path | None:
    """The newest ``last.ckpt`` under the configured logger's folder, or None."""
    checkpoints = sorted(runs_of(logger).glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
    return checkpoints[-1] if checkpoints else None


def keep_earlier(path: Path) -> None:
    """Move a file that a resumed run would write anew out of its way: metrics.csv becomes metrics-1.csv, and so on."""
    number = 1
    while path.with_stem(f"{path.stem}-{number}").exists():
        number += 1
    if path.exists():
        path.rename(path.with_stem(f"{path.stem}-{number}"))


def check_checkpoint(path: Path, *, resume: bool) -> None:
    """Refuse a checkpoint that cannot be used, before anything is built.

    Args:
        path: as it was given.
        resume: whether training goes on from it.

    Raises:
        CheckpointError: it is not there, is a folder, or cannot be read.
    """
    if path.is_dir() and path.suffix == ".ckpt":
        raise CheckpointError(
            f"ckpt_path {path} is a folder that DeepSpeed wrote, from which a run cannot be continued yet; its weights are in the run's model/ "
            "where it ended, or come out of the zero_to_fp32.py in that folder."
        )
    if path.is_dir():
        raise CheckpointError(f"ckpt_path {path} is a folder; give a .ckpt file in it, or `last` for the newest run.")
    if not path.exists():
        raise CheckpointError(f"ckpt_path {path} does not exist; give a .ckpt file, or `last` for the newest run.")
    read_checkpoint(path, resume=resume)
