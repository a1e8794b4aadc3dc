"""The command: do the runs that are not done yet, evaluate what they gave, sum up."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

from locus_lightning.errors import ConfigError, LocusError
from locus_lightning.study.plan import EVALUATIONS, MODEL, Study, configuration, read_study, result_of, summary_of
from locus_lightning.study.report import draw, markdown, print_tables, summarise

NOTE, LOG = "study.yaml", "log.txt"


def study_command(arguments: Sequence[str]) -> int:
    """``locus study FILE``."""
    parser = argparse.ArgumentParser(
        prog="locus study", description="Runs that differ in one thing each, with seeds; a table and a figure at the end."
    )
    parser.add_argument("study", type=Path, help="YAML: title, base, seeds, common, arms, groups, evaluate")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/studies/NAME)")
    parser.add_argument("--workers", type=int, help="runs side by side, each with its share of the cores "
                        "(default: one a core where the base trains on the CPU, else one)")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="these arms alone")
    parser.add_argument("--report", action="store_true", help="train nothing: sum up what has run")
    options = parser.parse_args(arguments)
    study = read_study(options.study)
    wrong = sorted(set(options.only) - {arm.name for arm in study.arms})
    workers = options.workers if options.workers is not None else (os.cpu_count() or 1) if study.on_cpu else 1
    if wrong or workers < 1:
        raise ConfigError(
            f"--only {', '.join(wrong)} is no arm of {options.study}." if wrong else f"--workers is {workers}; it is at least 1."
        )
    folder = options.out or Path("runs") / "studies" / options.study.stem
    try:
        if not options.report:
            run_study(study, folder, workers, options.only)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was.", file=sys.stderr)
        return 130
    results = summarise(study, folder, options.only)
    if not results["arms"]:
        raise ConfigError(f"no run of {options.study} in {folder} is finished yet.")
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print_tables(results)
    (folder / "table.md").write_text(markdown(results))
    draw(results, folder / "figure.png")
    print(f"{folder / 'table.md'}, {folder / 'figure.png'}, {folder / 'results.json'}")
    return 0


def run_study(study: Study, folder: Path, workers: int, only: Sequence[str] = ()) -> None:
    """Do the runs, and the evaluations, that are not done yet.

    Runs go side by side with an equal share of the cores each. One that was stopped goes on from its last checkpoint, an evaluation from its
    last answer.

    Raises:
        ConfigError: ``folder`` holds runs of another study.
        LocusError: a run failed; the others are kept.
    """
    runs = [(f"{arm.name}-{seed}", configuration(study, arm, seed, folder)) for seed in study.seeds for arm in study.arms
            if not only or arm.name in only]  # fmt: skip
    _note(dict(runs) | ({EVALUATIONS: dict(study.evaluate)} if study.evaluate else {}), folder)
    if study.evaluate and not result_of(study, folder, study.model).is_file():
        print(f"{study.evaluate['suite']}, before training", flush=True)
        log = folder / EVALUATIONS / LOG
        if _evaluate(study, folder, study.model, log, None):
            raise LocusError(f"the model before training could not be evaluated: {_said(log)}")
    left = [name for name, _ in runs if not _done(study, folder, name)]
    print(f"{len(runs)} runs, {len(runs) - len(left)} done already, {workers} at a time", flush=True)
    threads = max(1, (os.cpu_count() or 1) // workers)
    failed: list[str] = []
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(_run, study, folder, name, threads): name for name in left}
        try:
            for number, ended in enumerate(as_completed(running), 1):
                name, status = running[ended], ended.result()
                log = folder / name / LOG
                print(f"{number} of {len(left)}, {name}: {'done' if status == 0 else f'failed, see {log}: {_said(log)}'}", flush=True)
                if status:
                    failed.append(name)
        except KeyboardInterrupt:  # the terminal has told the runs too: they save themselves after their step
            print("\nstopping, the runs save themselves first", flush=True)
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise LocusError(f"{len(failed)} of {len(left)} runs failed ({', '.join(failed)}); run the same command again to go on.")


def _note(contents: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write what each folder is made from, unless one has been made from something else."""
    texts = {folder / name / NOTE: yaml.safe_dump(content, sort_keys=False) for name, content in contents.items()}
    for note, text in texts.items():
        if note.is_file() and note.read_text() != text:
            raise ConfigError(f"{note} differs from what the study says now; delete {note.parent}, or choose another --out.")
    for note, text in texts.items():
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(text)


def _done(study: Study, folder: Path, name: str) -> bool:
    return summary_of(folder, name).is_file() and (not study.evaluate or result_of(study, folder, f"{name}/{MODEL}").is_file())


def _run(study: Study, folder: Path, name: str, threads: int) -> int:
    """Train, then evaluate; the first exit status that is not 0."""
    target, status = folder / name, 0
    if not summary_of(folder, name).is_file():
        last = target / "checkpoints" / "last.ckpt"
        more = [f"--ckpt_path={last}"] if last.is_file() else []
        status = _locus(["fit", "--config", str(target / NOTE), "--trainer.enable_progress_bar=false", *more], target / LOG, threads)
    if study.evaluate and status == 0:
        status = _evaluate(study, folder, f"{name}/{MODEL}", target / LOG, threads)
    return status


def _evaluate(study: Study, folder: Path, model: str, log: Path, threads: int | None) -> int:
    """Run in ``folder``, so that the names of models, and of what is kept of them, do not change with where it lies."""
    wanted = {key: str(Path(value).expanduser().resolve()) if key == "data" else value for key, value in study.evaluate.items()}
    options = [f"--{key}" if value is True else f"--{key}={value}" for key, value in wanted.items() if value is not False]
    return _locus(["eval", model, f"--out={EVALUATIONS}", *options], log, threads, folder)


def _locus(words: list[str], log: Path, threads: int | None, place: Path | None = None) -> int:
    """Run ``locus`` as a process of its own, output to ``log``; ``threads`` None: as many as there are cores."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    with log.open("a") as file:
        command = [sys.executable, "-m", "locus_lightning", *words]
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=place, check=False).returncode


def _said(log: Path) -> str:
    """The last line of a log."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
