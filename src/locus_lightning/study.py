"""``locus study``: several training runs that differ in one thing each, with seeds; one table and one figure at the end."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from locus_lightning.errors import ConfigError, LocusError

FIGURES = {
    "proxy mIoU": "iou",
    "proxy ACC@0.5": "acc0.5",
    "SmallStar": "eval/smallstar",
    "direct attributes": "eval/smallstar_direct_attributes",
    "relative position": "eval/smallstar_relative_position",
}
"""Columns of the table: what stands in a run's ``summary.json`` under ``before`` and ``after``; shares, shown in percent."""


@dataclass(frozen=True)
class Arm:
    """One row of a study.

    ``change`` maps dotted keys of the base configuration to new values; ``paper`` holds the paper's own figures for the row.
    """

    name: str
    label: str
    change: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study file, read.

    ``groups`` names the comparisons, each a list of arms (``base`` stands for the model before training).
    """

    title: str
    base: Path
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    groups: Mapping[str, Sequence[str]]
    common: Mapping[str, Any]
    paper_base: Mapping[str, float]


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: it is missing, no YAML, or not of the form of :class:`Study`: title, base, seeds, common, arms (label, change, paper), groups, paper_base.
    """
    if not path.is_file():
        raise ConfigError(f"the study {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text())
        arms = tuple(Arm(name, **{"label": name, **(facts or {})}) for name, facts in content["arms"].items())
        study = Study(
            content.get("title", path.stem), path.parent / content["base"], tuple(int(s) for s in content["seeds"]), arms,
            content.get("groups", {"arms": [arm.name for arm in arms]}), content.get("common", {}), content.get("paper_base", {}),
        )  # fmt: skip
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as cause:
        raise ConfigError(f"{path} is not a study: it needs base, seeds and arms ({type(cause).__name__}: {cause}).") from cause
    unknown = sorted({name for names in study.groups.values() for name in names} - {arm.name for arm in arms} - {"base"})
    if unknown or not arms or not study.seeds or not study.base.is_file():
        what = f"its groups name unknown arms {unknown}" if unknown else f"it needs arms, seeds and an existing base ({study.base})"
        raise ConfigError(f"{path}: {what}.")
    return study


def configuration(study: Study, arm: Arm, seed: int, folder: Path) -> dict[str, Any]:
    """The whole configuration of one run: the base with the study's and the arm's changes.

    Raises:
        ConfigError: a changed key lies in nothing.
    """
    config: dict[str, Any] = copy.deepcopy(yaml.safe_load(study.base.read_text()))
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder), "name": "", "version": f"{arm.name}-{seed}"}}
    own = {"seed_everything": seed, "data.seed": seed, "trainer.logger": logger}
    for key, value in {**study.common, **arm.change, **own}.items():
        *way, last = key.split(".")
        place: Any = config
        for step in way:
            place = place.get(step) if isinstance(place, dict) else None
            if not isinstance(place, dict):
                raise ConfigError(f"arm {arm.name} changes {key}, but {study.base} has no {step} there.")
        place[last] = copy.deepcopy(value)
    return config


def run_study(study: Study, folder: Path, workers: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Do the runs that are not done yet, then sum up; returns what ``results.json`` holds.

    Runs go side by side with an equal share of the cores each. One that was stopped goes on from its last checkpoint.

    Raises:
        LocusError: a run failed; the others are kept.
    """
    jobs = [(arm, seed) for seed in study.seeds for arm in study.arms if not only or arm.name in only]
    for arm, seed in jobs:
        target = folder / f"{arm.name}-{seed}"
        target.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(configuration(study, arm, seed, folder), sort_keys=False)
        note = target / "study.yaml"
        if note.is_file() and note.read_text() != text:
            raise ConfigError(f"{note} differs from what the study says now; delete {target}, or choose another --out.")
        note.write_text(text)
    left = [(arm, seed) for arm, seed in jobs if not (folder / f"{arm.name}-{seed}" / "summary.json").is_file()]
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} done already, {workers} at a time", flush=True)
    threads = max(1, (os.cpu_count() or 1) // workers)
    failed: list[str] = []
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(_run, folder / f"{arm.name}-{seed}", threads) for arm, seed in left]
        for number, ended in enumerate(as_completed(running), 1):
            name, status = ended.result()
            print(f"{number} of {len(left)}, {name}: {'done' if status == 0 else f'failed, see {folder / name}/log.txt'}", flush=True)
            if status:
                failed.append(name)
    if failed:
        raise LocusError(f"{len(failed)} of {len(left)} runs failed ({', '.join(failed)}); run the same command again to go on.")
    results = summarise(study, folder, only)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    return results


def _run(target: Path, threads: int) -> tuple[str, int]:
    command = [
        sys.executable,
        "-m",
        "locus_lightning",
        "fit",
        "--config",
        str(target / "study.yaml"),
        "--trainer.enable_progress_bar=false",
    ]
    last = target / "checkpoints" / "last.ckpt"
    if last.is_file():
        command.append(f"--ckpt_path={last}")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (target / "log.txt").open("a") as log:
        return target.name, subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode


def summarise(study: Study, folder: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Means over seeds, before and after, of every arm that has run."""
    arms: dict[str, Any] = {}
    for arm in study.arms:
        found = [folder / f"{arm.name}-{seed}" / "summary.json" for seed in study.seeds]
        runs = [json.loads(path.read_text()) for path in found if path.is_file()]
        if not runs or (only and arm.name not in only):
            continue
        arms[arm.name] = {
            "label": arm.label,
            "seeds": [run["seed"] for run in runs],
            "before": _columns([run["before"] for run in runs]),
            "after": _columns([run["after"] for run in runs]),
            "paper": dict(arm.paper),
        }
    return {
        "title": study.title,
        "arms": arms,
        "groups": {k: list(v) for k, v in study.groups.items()},
        "paper_base": dict(study.paper_base),
    }


def _columns(figures: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [100 * f[key] for f in figures] for name, key in FIGURES.items() if all(key in f for f in figures)}


def rows_of(results: dict[str, Any], group: str) -> list[tuple[str, dict[str, list[float]], dict[str, float]]]:
    """(label, figures by column, the paper's figures) of a comparison; the first arm's ``before`` is the base model."""
    arms, rows = results["arms"], []
    for name in results["groups"][group]:
        if name == "base" and arms:
            rows.append(("before training", next(iter(arms.values()))["before"], results["paper_base"]))
        elif name in arms:
            rows.append((arms[name]["label"], arms[name]["after"], arms[name]["paper"]))
    return rows


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def markdown(results: dict[str, Any]) -> str:
    """The tables of all comparisons, for a document."""
    papers = sorted({key for arm in results["arms"].values() for key in arm["paper"]} | set(results["paper_base"]))
    lines = [
        f"# {results['title']}",
        "",
        "Percent; mean ± standard deviation over seeds. Columns with *paper* are the paper's own figures.",
        "",
    ]
    for group in results["groups"]:
        rows = rows_of(results, group)
        if not rows:
            continue
        columns = [name for name in FIGURES if any(name in figures for _, figures, _ in rows)]
        lines += [f"## {group}", "", "| | " + " | ".join([*columns, *(f"*paper {p}*" for p in papers)]) + " |"]
        lines.append("|---" * (1 + len(columns) + len(papers)) + "|")
        for label, figures, paper in rows:
            cells = [spread(figures[c]) if c in figures else "" for c in columns] + [
                f"{paper[p]:.1f}" if p in paper else "" for p in papers
            ]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def print_tables(results: dict[str, Any]) -> None:
    """The same on the screen."""
    for group in results["groups"]:
        rows = rows_of(results, group)
        if not rows:
            continue
        columns = [name for name in FIGURES if any(name in figures for _, figures, _ in rows)]
        table = Table(title=f"{group} (percent, mean ± sd over seeds)")
        for name in ("", *columns):
            table.add_column(name, justify="right" if name else "left")
        for label, figures, _ in rows:
            table.add_row(label, *(spread(figures[c]) if c in figures else "" for c in columns))
        Console().print(table)


def draw(results: dict[str, Any], path: Path) -> None:
    """One figure: a row of panels a comparison, ours with every seed as a dot, the paper's beside."""
    from matplotlib.figure import Figure

    groups = [group for group in results["groups"] if rows_of(results, group)]
    shown = ("proxy mIoU", "SmallStar")
    papers = ("proxy mIoU", "V*")
    figure = Figure(figsize=(13, 0.9 + 2.5 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), 4, squeeze=False)
    for r, group in enumerate(groups):
        rows = rows_of(results, group)
        for c, (column, ours) in enumerate([*((name, True) for name in shown), *((name, False) for name in papers)]):
            axis = axes[r][c]
            values = [figures.get(column, []) if ours else ([paper[column]] if column in paper else []) for _, figures, paper in rows]
            place = range(len(rows))
            axis.barh(place, [mean(v) if v else 0 for v in values], color="#3566c8" if ours else "#b9bec9", height=0.62)
            for y, v in zip(place, values, strict=True):
                if ours:
                    axis.plot(v, [y] * len(v), "o", color="black", markersize=3)
                axis.text((max(v) if v else 0) + 1, y, f"{mean(v):.1f}" if v else "not reported", va="center", fontsize=8)
            axis.set_yticks(list(place), [label for label, _, _ in rows] if c == 0 else [""] * len(rows), fontsize=8)
            axis.invert_yaxis()
            axis.set_xlim(0, 1.2 * max([1.0, *(x for v in values for x in v)]))
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_title(f"{group}: {column}" + ("" if ours else " (paper)"), fontsize=9, loc="left")
    figure.suptitle(f"{results['title']}: percent, mean over seeds (dots: seeds)", fontsize=11)
    figure.savefig(path, dpi=130)


def study_command(arguments: Sequence[str]) -> int:
    """``locus study FILE``."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="locus study", description="Runs that differ in one thing each, with seeds; a table and a figure at the end."
    )
    parser.add_argument("study", type=Path, help="YAML: title, base, seeds, common, arms, groups")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/studies/NAME)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs side by side, each with its share of the cores")
    parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="these arms alone")
    parser.add_argument("--report", action="store_true", help="train nothing: sum up what has run")
    asked = parser.parse_args(arguments)
    study = read_study(asked.study)
    wrong = sorted(set(asked.only) - {arm.name for arm in study.arms})
    if wrong or asked.workers < 1:
        raise ConfigError(
            f"--only {', '.join(wrong)} is no arm of {asked.study}." if wrong else f"--workers is {asked.workers}; it is at least 1."
        )
    folder = asked.out or Path("runs") / "studies" / asked.study.stem
    results = summarise(study, folder, asked.only) if asked.report else run_study(study, folder, asked.workers, asked.only)
    if not results["arms"]:
        raise ConfigError(f"no run of {asked.study} in {folder} is finished yet.")
    print_tables(results)
    (folder / "table.md").write_text(markdown(results))
    draw(results, folder / "figure.png")
    print(f"{folder / 'table.md'}, {folder / 'figure.png'}, {folder / 'results.json'}")
    return 0
