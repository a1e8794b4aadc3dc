"""Benchmarks that lmms-eval runs: those that need a judge, a mathematics checker, or rules of their own.

lmms-eval lives in an environment of its own (plugins/lmms_eval), is started there as a program, and asks our model ``locus``. What it
reports is read from its results file: it exits with 0 when it failed too.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from locus_lightning.errors import ConfigError, DataError
from locus_lightning.evaluation.paper import Row
from locus_lightning.evaluation.runner import Settings

RAW, LOG, ABOUT = "raw.jsonl", "log.txt", "about.json"


def run_task(python: Path, model: str, row: Row, folder: Path, settings: Settings, dtype: str) -> float:
    """One of the paper's benchmarks by lmms-eval; its headline figure in [0, 1].

    A task that has finished with the same model and settings is not run again; one that was stopped begins anew. ``folder`` gets
    ``raw.jsonl`` (every answer as it was written), lmms-eval's own files, and what it printed (``log.txt``).

    Args:
        python: the interpreter of an environment with locus-lmms-eval.
        model: what ``locus eval`` opens.
        row: which benchmark.
        folder: of this model and task.
        settings: how it is asked.
        dtype: of the weights.

    Raises:
        ConfigError: there is no such interpreter, or ``folder`` holds a run of other settings.
        DataError: lmms-eval reported nothing; the end of its log is quoted.
    """
    if not python.is_file():
        raise ConfigError(f"--lmms-eval {python} is no file; give the Python of an environment with plugins/lmms_eval installed.")
    about = {"model": model, "task": row.task, "dtype": dtype, **vars(settings)}
    kept = folder / ABOUT
    if kept.is_file() and json.loads(kept.read_text()) != about:
        raise ConfigError(f"{folder} holds a run of {kept.read_text().strip()}; name another folder with --out, or remove that one.")
    if _results(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(about) + "\n")
        (folder / RAW).unlink(missing_ok=True)
        with (folder / LOG).open("w") as log:
            subprocess.run(command(python, model, row.task, folder, settings, dtype), stdout=log, stderr=subprocess.STDOUT, check=False)
    results = _results(folder)
    if results is None:
        last = [line.strip() for line in (folder / LOG).read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise DataError(f"lmms-eval gave no result for {row.task}; its log is {folder / LOG} ({' '.join(last)[-300:] or 'empty'}).")
    return headline(results, row)


def command(python: Path, model: str, task: str, folder: Path, settings: Settings, dtype: str) -> list[str]:
    """How lmms-eval is started."""
    model_args: dict[str, Any] = {"pretrained": model, "dtype": dtype, "think": settings.think, "raw": folder / RAW}
    if settings.max_new_tokens:
        model_args["max_new_tokens"] = settings.max_new_tokens
    words = [str(python), "-m", "lmms_eval", "--model", "locus", "--model_args", ",".join(f"{k}={v}" for k, v in model_args.items()),
             "--tasks", task, "--batch_size", str(settings.batch_size), "--output_path", str(folder), "--log_samples"]  # fmt: skip
    return [*words, "--limit", str(settings.limit)] if settings.limit else words


def headline(results: dict[str, Any], row: Row) -> float:
    """The figure that stands in the paper's table.

    Raises:
        DataError: lmms-eval reports it under another name.
    """
    figures = {key.split(",")[0]: value for key, value in results["results"].get(row.task, {}).items() if isinstance(value, int | float)}
    figure = next((float(value) for name, value in figures.items() if name.startswith(row.metric)), None)
    if figure is None:
        raise DataError(f"lmms-eval's {row.task} reports {', '.join(figures) or 'nothing'}, and no {row.metric}.")
    return figure / 100 if row.in_percent else figure


def _results(folder: Path) -> dict[str, Any] | None:
    files = sorted(folder.rglob("*results.json"))
    return dict(json.loads(files[-1].read_text())) if files else None
