"""What a run gave: a table at its end, and ``summary.json`` in its folder."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from locus_lightning.files import whole
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.tasks.base import Task
from locus_lightning.training.base import TaskModule
from locus_lightning.training.grpo import LocusModule

_LIBRARIES = ("locus-lightning", "torch", "lightning", "transformers", "peft", "bitsandbytes")


class Summary(L.Callback):
    """Adds up seconds by phase during the fit; :meth:`finish` writes the summary afterwards."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = 0
        self.validated_at: int | None = None
        self._validation_started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far, so that a resumed run adds to them."""
        return {"seconds": dict(self.seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.seconds.update(state_dict["seconds"])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of a validation."""
        self._validation_started = perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a validation's time, and remember after which step it was."""
        if not trainer.sanity_checking:
            self.validated_at = trainer.global_step
        self.seconds["validation"] += perf_counter() - self._validation_started

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """A new rollout batch begins: add up the last one's phases."""
        if batch and isinstance(pl_module, LocusModule):
            self._take(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add up the last rollout batch's phases."""
        if isinstance(pl_module, LocusModule):
            self._take(trainer, pl_module)
        self.steps = trainer.global_step

    def _take(self, trainer: L.Trainer, module: LocusModule) -> None:
        if module.seconds:
            for phase, value in module.seconds.items():
                self.seconds[phase] += value
            for logger in trainer.loggers:
                logger.log_metrics({f"speed/{phase}_s": value for phase, value in module.seconds.items()}, step=trainer.global_step)
            module.seconds.clear()

    def finish(
        self,
        folder: Path | None,
        module: TaskModule,
        after: dict[str, float],
        seed: Any,
        data: dict[str, object],
    ) -> dict[str, Any]:
        """Write ``summary.json``, print the table, and return what was written."""
        before, task, sampling = module.before, module.task, module.validation
        summary = {
            "task": type(task).__name__,
            f"{task.headline}_before": before.get(f"val/{task.headline}"),
            f"{task.headline}_after": after.get(f"val/{task.headline}"),
            "floor": after.get("val/floor"),
            "steps": self.steps,
            "skipped_steps": module.skipped_steps,
            "seed": seed,
            "sampling": dict(vars(sampling)),
            "before": plain_figures(before),
            "after": plain_figures(after),
            "seconds": {phase: round(value, 2) for phase, value in self.seconds.items()},
            "data": data,
            "versions": {name: _version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
        }
        if folder is not None:
            with whole(folder / "summary.json") as beside:
                beside.write_text(json.dumps(summary, indent=2) + "\n")
        console = Console()
        console.print(figures_table(task, before, after, sampling))
        phases = ", ".join(f"{phase} {value:.0f} s" for phase, value in self.seconds.items())
        console.print(f"{self.steps} optimiser steps; {phases}.")
        return summary


def figures_table(task: Task, before: dict[str, float], after: dict[str, float], sampling: SamplingParams) -> Table:
    """Held-out figures, all samples and by the task's groups; ``before`` may be empty."""
    how = "greedy answers" if sampling.temperature == 0 else f"answers at temperature {sampling.temperature:g}, top-p {sampling.top_p:g}"
    table = Table(title=f"Held-out samples of {type(task).__name__}, {how}")
    table.add_column("samples")
    table.add_column("number", justify="right")
    for title in task.columns.values():
        table.add_column(title, justify="right")
    for suffix in ("", *(f"_{name}" for name in task.groups)):
        if f"val/{task.headline}{suffix}" not in after:
            continue
        cells = [_change(before.get(f"val/{name}{suffix}"), after.get(f"val/{name}{suffix}")) for name in task.columns]
        table.add_row(suffix.removeprefix("_") or "all", f"{after[f'val/samples{suffix}']:.0f}", *cells)
    blank = [""] * (len(task.columns) - 1)
    table.add_row("best answer without looking", "", f"{after.get('val/floor', 0.0):.3f}", *blank, style="dim")
    if "val/parse_rate" in after:
        table.caption = f"answers that could be parsed: {_change(before.get('val/parse_rate'), after['val/parse_rate'])}"
    return table


def log_hyperparameters(trainer: L.Trainer, task: Task, config: dict[str, Any], after: dict[str, float]) -> None:
    """Hyper-parameters for every logger; beside final figures for TensorBoard's HPARAMS tab."""
    flat = dict(_flatten("", config))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            kept = (*(f"val/{name}" for name in task.columns), "val/parse_rate")
            logger.log_hyperparams(flat, {f"final/{name.removeprefix('val/')}": after[name] for name in kept if name in after})
            logger.finalize("success")
        else:
            logger.log_hyperparams(flat)


def _flatten(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flatten(f"{prefix}.{key}" if prefix else str(key), inner)]
    return [(prefix, value if isinstance(value, int | float | str | bool) else str(value))]


def _change(before: float | None, after: float | None) -> str:
    if after is None:
        return ""
    return f"{after:.3f}" if before is None else f"{before:.3f} -> {after:.3f}"


def plain_figures(figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures for a file: numbers of six places, without ``val/`` before their names."""
    return {name.removeprefix("val/"): round(float(value), 6) for name, value in figures.items()}


def _version(name: str) -> str:
    try:
        return version(name)
    except Exception:
        return "not installed"
