"""What a study's runs gave: means over seeds, gains over the model before training, tables, one figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from locus_lightning.evaluation.benchmarks import SUITES
from locus_lightning.evaluation.runner import difference, mean_result
from locus_lightning.study.plan import MODEL, Study, result_of, summary_of

FIGURES = {"proxy mIoU": "iou", "proxy ACC@0.5": "acc0.5"}
"""Columns of cue search: what stands in a run's ``summary.json`` under ``before`` and ``after``; shares, shown in percent."""

PAPER = ("proxy mIoU", "V*")
"""What is drawn of the paper's own figures."""

INTERVAL = "With a sign: less the model before training, and the 95 % interval over questions."


def summarise(study: Study, folder: Path, only: Sequence[str] = ()) -> dict[str, Any]:
    """Every arm that has run: figures by column and seed, before and after, and gains in the benchmark.

    A gain is the arm's mean score over seeds less the score before training, over the same questions, in percent, with the ends of its 95 %
    bootstrap interval over questions (our choice; it tells nothing of other seeds).
    """
    suite = SUITES[study.evaluate["suite"]].__name__ if study.evaluate else ""
    before = _results(study, folder, [study.model]) if suite else []
    arms: dict[str, Any] = {}
    for arm in study.arms:
        names = [f"{arm.name}-{seed}" for seed in study.seeds]
        summaries = {name: json.loads(path.read_text()) for name in names if (path := summary_of(folder, name)).is_file()}
        if not summaries or (only and arm.name not in only):
            continue
        runs = list(summaries.values())
        facts: dict[str, Any] = {
            "label": arm.label,
            "seeds": [run["seed"] for run in runs],
            "before": _columns([run["before"] for run in runs], FIGURES),
            "after": _columns([run["after"] for run in runs], FIGURES),
            "paper": dict(arm.paper),
        }
        answers = _results(study, folder, [f"{name}/{MODEL}" for name in summaries]) if before else []
        if len(answers) == len(summaries):
            first = before[0]
            columns = {_column(suite, name): name for name in first["figures"]}
            facts["before"] |= _columns([first["figures"]], columns)
            facts["after"] |= _columns([result["figures"] for result in answers], columns)
            gains = difference(first, mean_result(answers))
            facts["gain"] = {_column(suite, name or "score"): [100 * value for value in gain] for name, gain in gains.items()}
        arms[arm.name] = facts
    return {
        "title": study.title,
        "benchmark": suite,
        "arms": arms,
        "groups": {k: list(v) for k, v in study.groups.items()},
        "paper_base": dict(study.paper_base),
    }


def _results(study: Study, folder: Path, models: Sequence[str]) -> list[dict[str, Any]]:
    """The results of the models that have been evaluated."""
    return [json.loads(path.read_text()) for model in models if (path := result_of(study, folder, model)).is_file()]


def _column(suite: str, name: str) -> str:
    return suite if name == "score" else name.replace("_", " ")


def _columns(figures: Sequence[Mapping[str, float]], keys: Mapping[str, str]) -> dict[str, list[float]]:
    return {name: [100 * f[key] for f in figures] for name, key in keys.items() if all(key in f for f in figures)}


Row = dict[str, Any]
"""An arm's label, figures by column, gains, and the paper's figures."""


def rows_of(results: dict[str, Any], group: str) -> list[Row]:
    """The rows of a comparison; the first arm's ``before`` is the base model."""
    arms, rows = results["arms"], []
    for name in results["groups"][group]:
        if name == "base" and arms:
            before = next(iter(arms.values()))["before"]
            rows.append({"label": "before training", "figures": before, "gain": {}, "paper": results["paper_base"]})
        elif name in arms:
            arm = arms[name]
            rows.append({"label": arm["label"], "figures": arm["after"], "gain": arm.get("gain", {}), "paper": arm["paper"]})
    return rows


def mean_and_std(values: Sequence[float]) -> str:
    """Mean, and standard deviation over seeds where there are several."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _cells(row: Row, columns: Sequence[str], between: str = " ") -> list[str]:
    cells = []
    for column in columns:
        parts = [mean_and_std(row["figures"][column])] if column in row["figures"] else []
        if column in row["gain"]:
            gain, low, high = row["gain"][column]
            parts += [f"{gain:+.1f}", f"[{low:+.1f}, {high:+.1f}]"]
        cells.append(between.join(parts))
    return cells


def _shown(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["figures"]))


def markdown(results: dict[str, Any]) -> str:
    """The tables of all comparisons, for a document."""
    papers = sorted({key for arm in results["arms"].values() for key in arm["paper"]} | set(results["paper_base"]))
    how = f"Percent; mean ± standard deviation over seeds. {INTERVAL if results['benchmark'] else ''}"
    lines = [f"# {results['title']}", "", f"{how.strip()} Columns with *paper* are the paper's own figures.", ""]
    for group in results["groups"]:
        rows = rows_of(results, group)
        if not rows:
            continue
        columns = _shown(rows)
        lines += [f"## {group}", "", "| | " + " | ".join([*columns, *(f"*paper {p}*" for p in papers)]) + " |"]
        lines.append("|---" * (1 + len(columns) + len(papers)) + "|")
        for row in rows:
            theirs = [f"{row['paper'][p]:.1f}" if p in row["paper"] else "" for p in papers]
            lines.append(f"| {row['label']} | " + " | ".join([*_cells(row, columns), *theirs]) + " |")
        lines.append("")
    return "\n".join(lines)


def print_tables(results: dict[str, Any]) -> None:
    """The same on the screen."""
    for group in results["groups"]:
        rows = rows_of(results, group)
        if not rows:
            continue
        columns = _shown(rows)
        table = Table(title=f"{group} (percent, mean ± sd over seeds)", caption=INTERVAL if results["benchmark"] else None)
        for name in ("", *columns):
            table.add_column(name, justify="right" if name else "left")
        for row in rows:
            table.add_row(row["label"], *_cells(row, columns, "\n"))
        Console().print(table)


def draw(results: dict[str, Any], path: Path) -> None:
    """One figure, a row of panels a comparison: cue search with every seed as a dot, gains in the benchmark with their intervals, and of the
    paper the same two where the study gives its figures before training."""
    from matplotlib.figure import Figure

    groups = [group for group in results["groups"] if rows_of(results, group)]
    suite = results["benchmark"]
    theirs = [name for name in PAPER if name in results["paper_base"]]
    gains = [arm["gain"][suite] for arm in results["arms"].values() if suite in arm.get("gain", {})]
    far = 1.4 * max([0.5, *(abs(x) for gain in gains for x in gain)])
    panels = 1 + bool(suite) + len(theirs)
    figure = Figure(figsize=(3.4 * panels + 1, 0.9 + 2.5 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), panels, squeeze=False)
    for r, group in enumerate(groups):
        rows = rows_of(results, group)
        left = iter(axes[r])
        _bars(next(left), f"{group}: proxy mIoU", [row["figures"].get("proxy mIoU", []) for row in rows])
        if suite:
            _gains(next(left), f"{group}: {suite}, gain", [row["gain"].get(suite) for row in rows], far)
        for name in theirs:
            gain = name not in FIGURES  # a benchmark's
            start = results["paper_base"][name] if gain else 0
            values = [[row["paper"][name] - start] if name in row["paper"] else [] for row in rows]
            _bars(next(left), f"{group}: {name}{', gain' if gain else ''} (paper)", values, paper=True, gain=gain)
        for c, axis in enumerate(axes[r]):
            axis.set_yticks(range(len(rows)), [row["label"] for row in rows] if c == 0 else [""] * len(rows), fontsize=8)
            axis.set_ylim(len(rows) - 0.5, -0.5)
            axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{results['title']}: percent, mean over seeds (dots: seeds; lines: 95 % intervals of questions)", fontsize=11)
    figure.savefig(path, dpi=130)


def _bars(axis: Any, title: str, values: Sequence[Sequence[float]], paper: bool = False, gain: bool = False) -> None:
    axis.barh(range(len(values)), [mean(v) if v else 0 for v in values], color="#b9bec9" if paper else "#3566c8", height=0.62)
    far = 1.2 * max([1.0, *(x for v in values for x in v)])
    for y, v in enumerate(values):
        if not paper:
            axis.plot(v, [y] * len(v), "o", color="black", markersize=3)
        label = f"{mean(v):{'+' if gain else ''}.1f}" if v else "not reported"
        axis.text(max([0.0, *v]) + 0.02 * far, y, label, va="center", fontsize=8)
    axis.set_xlim(min([0.0, *(1.2 * x for v in values for x in v)]), far)
    axis.set_title(title, fontsize=9, loc="left")


def _gains(axis: Any, title: str, gains: Sequence[Sequence[float] | None], far: float) -> None:
    axis.axvline(0, color="#888888", linewidth=0.8)
    for y, gain in enumerate(gains):
        if gain:
            middle, low, high = gain
            axis.errorbar([middle], [y], xerr=[[middle - low], [high - middle]], fmt="o", color="#3566c8", markersize=5, capsize=3)
            axis.text(high + 0.03 * far, y, f"{middle:+.1f}", va="center", fontsize=8)
    axis.set_xlim(-far, far)
    axis.set_title(title, fontsize=9, loc="left")
