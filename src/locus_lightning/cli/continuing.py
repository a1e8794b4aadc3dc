"""Which run ``--ckpt_path last`` means, and what in its folder must not be overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from locus_lightning.callbacks.run_folder import NUMBERING, own_root


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
