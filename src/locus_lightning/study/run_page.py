"""One page about a run, or about several side by side: figures, curves, pictures, completions, settings. It needs no other file."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locus_lightning.errors import DataError
from locus_lightning.files import render, whole

PAGE = "report.html"

_CURVES = (
    ("val/", "held-out {}"), ("eval/", "{}"), ("reward/", "reward: {}"), ("rollout/", "rollout: {}"), ("update/", "update: {}"), ("speed/", "{}"),
)  # fmt: skip
"""Beginnings of tags in the order in which they are drawn, and what stands above each curve."""
_LEFT_OUT = ("val/samples", "val/floor", "val/acc0.75_", "val/iou_", "val/acc0.5_", "speed/score")
_COLOURS = ("#3566c8", "#b3261e", "#1d6b36", "#a15c00", "#6b3fa0", "#4a4f57")


@dataclass
class RunFacts:
    """What a run's folder holds.

    Attributes:
        name: of the run, as its folder lies.
        summary: of ``summary.json``; empty where the run has not ended.
        config: the text of ``config.yaml``.
        scalars: tag -> (steps, values).
        pictures: (step, PNG) of the first and the last picture of groups.
        completions: rows of the last table of completions, its header first.
    """

    name: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    scalars: Mapping[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    pictures: Sequence[tuple[int, bytes]] = ()
    completions: Sequence[Sequence[str]] = ()


def read_run(folder: Path) -> RunFacts:
    """Read a run's folder.

    Raises:
        DataError: it is not there, or is no run's.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}.")
    summary, config = folder / "summary.json", folder / "config.yaml"
    if not config.is_file():
        raise DataError(f"{folder} is no run's folder: it has no config.yaml; give one such as runs/tiny/version_0.")
    scalars, pictures, completions = _events(folder)
    return RunFacts(
        "/".join(folder.resolve().parts[-2:]), _summary(summary), config.read_text(), scalars, pictures, completions,
    )  # fmt: skip


def _summary(path: Path) -> Mapping[str, Any]:
    """What a run's summary holds; nothing where there is none, or where a full disk left it empty."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _events(folder: Path) -> tuple[dict[str, tuple[list[int], list[float]]], list[tuple[int, bytes]], list[list[str]]]:
    """Scalars, pictures and completions of TensorBoard's event files; of CSVLogger's file where there are none."""
    if not any(folder.glob("events.out.tfevents.*")):
        files = sorted((folder / "pictures").glob("cues-*.png"))
        texts = sorted((folder / "pictures").glob("completions-*.md"))
        shown = [(int(path.stem.rpartition("-")[2]), path.read_bytes()) for path in dict.fromkeys([*files[:1], *files[-1:]])]
        return _csv(folder / "metrics.csv"), shown, _table(texts[-1].read_text(encoding="utf-8")) if texts else []
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {}
    for tag in tags["scalars"]:
        points = {event.step: event.value for event in events.Scalars(tag)}  # of a step that was logged again, the last
        scalars[tag] = ([*points], [*points.values()])
    pictures = [(event.step, event.encoded_image_string) for event in events.Images("cues")] if "cues" in tags["images"] else []
    text = (
        events.Tensors("completions/text_summary")[-1].tensor_proto.string_val[0].decode()
        if "completions/text_summary" in tags["tensors"]
        else ""
    )
    return scalars, [pictures[0], pictures[-1]] if len(pictures) > 1 else pictures, _table(text)


def _table(text: str) -> list[list[str]]:
    """The rows of a Markdown table as :func:`~locus_lightning.callbacks.media.markdown` writes it."""
    lines = (line.strip().strip("|").replace("\\|", "\x00") for line in text.splitlines() if line.startswith("|"))
    rows = [[cell.strip().replace("\x00", "|").replace("&lt;", "<") for cell in line.split("|")] for line in lines]
    return [row for row in rows if not set("".join(row)) <= {"-"}]


def _csv(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    if not path.is_file():
        return {}
    import csv

    scalars: dict[str, tuple[list[int], list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for tag, text in row.items():
                if text and tag not in ("step", "epoch") and row.get("step"):
                    steps, values = scalars.setdefault(tag, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(text))
    return scalars


def write_page(folders: Sequence[Path], target: Path) -> Path:
    """Write the page of these runs.

    Raises:
        DataError: see :func:`read_run`.
    """
    runs = [read_run(folder) for folder in folders]
    content = render(
        "report.html", runs=runs, title=" and ".join(run.name for run in runs), figures=figures_of(runs), curves=_url(curves(runs)),
        phases=_url(phases(runs)) if any(run.summary.get("seconds") for run in runs) else "", colours=_COLOURS,
        pictures=[[(step, _url(png)) for step, png in run.pictures] for run in runs],
        still={tag: next(run.scalars[tag][1][0] for run in runs if tag in run.scalars) for tag in _tags(runs)[1]},
    )  # fmt: skip
    with whole(target) as beside:
        beside.write_text(content, encoding="utf-8")
    return target


def figures_of(runs: Sequence[RunFacts]) -> list[list[str]]:
    """Rows of the table of held-out figures: name, then before and after of every run.

    Shares of samples (accuracies, rates) have half the width of their 95 % interval by the normal approximation behind them.
    """
    headlines = [_headline(run) for run in runs]
    names = sorted(dict.fromkeys(name for run in runs for name in run.summary.get("after", {})), key=lambda name: name not in headlines)
    rows = []
    for name in names:
        cells = [_figure(run.summary.get(when, {}), name) for run in runs for when in ("before", "after")]
        rows.append([name, *cells])
    return rows


def _figure(figures: Mapping[str, float], name: str) -> str:
    value = figures.get(name)
    if value is None:
        return ""
    if name.startswith("samples"):
        return f"{value:,.0f}"
    bin_ = name.partition("_")[2] if name.startswith(("acc", "iou")) else ""
    number = figures.get(f"samples_{bin_}" if bin_ else "samples", 0)
    share = name.startswith("acc") or name.endswith("_rate")
    half = 1.96 * math.sqrt(value * (1 - value) / number) if share and number and 0 <= value <= 1 else 0.0
    return f"{value:.3f}" + (f" ± {half:.3f}" if half else "")


def curves(runs: Sequence[RunFacts]) -> bytes:
    """All curves as small multiples, a colour a run; noisy ones with their running mean."""
    from matplotlib.figure import Figure

    moving, _ = _tags(runs)
    titles = {
        tag: title.format(tag.removeprefix(start).replace("_", " ")) for start, title in _CURVES for tag in moving if tag.startswith(start)
    }
    tags = list(titles.items())
    if not tags:
        return _png(Figure(figsize=(4, 0.5)))
    wide = 4
    figure = Figure(figsize=(4 * wide, 2.5 * math.ceil(len(tags) / wide)), layout="constrained")
    axes = figure.subplots(math.ceil(len(tags) / wide), wide, squeeze=False)
    for axis in axes.flat[len(tags) :]:
        axis.set_visible(False)
    for axis, (tag, title) in zip(axes.flat, tags, strict=False):
        for run, colour in zip(runs, _COLOURS * len(runs), strict=False):
            steps, values = run.scalars.get(tag, ([], []))
            if len(values) > 40:
                axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
                values = _running_mean(values)
            axis.plot(steps, values, color=colour, marker="o" if len(values) <= 12 else None, markersize=3, linewidth=1.4)
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _tags(runs: Sequence[RunFacts]) -> tuple[list[str], list[str]]:
    """Tags that are drawn, in order, and those that never change in any run."""
    ordered = [
        tag
        for start, _ in _CURVES
        for tag in sorted({tag for run in runs for tag in run.scalars if tag.startswith(start) and not tag.startswith(_LEFT_OUT)})
    ]
    still = [tag for tag in ordered if len({value for run in runs for value in run.scalars.get(tag, ([], []))[1]}) == 1]
    headlines = [f"val/{_headline(run)}" for run in runs if _headline(run)]
    return sorted((tag for tag in ordered if tag not in still), key=lambda tag: tag not in headlines), still


def _headline(run: RunFacts) -> str:
    """The name of the figure that a run's task is judged by; empty where it is not known."""
    return next((name.removesuffix("_before") for name in run.summary if name.endswith("_before")), "")


def _running_mean(values: Sequence[float], share: float = 0.05) -> list[float]:
    """The mean of each value and those around it, a twentieth of them all."""
    half = max(1, int(len(values) * share / 2))
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def phases(runs: Sequence[RunFacts]) -> bytes:
    """Where the time of each run went, as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 + 0.5 * len(runs)), layout="constrained")
    axis = figure.subplots()
    names = list(dict.fromkeys(phase for run in runs for phase in run.summary.get("seconds", {})))
    left = [0.0] * len(runs)
    for name, colour in zip(names, _COLOURS * len(names), strict=False):
        values = [run.summary.get("seconds", {}).get(name, 0.0) for run in runs]
        axis.barh([run.name for run in runs], values, left=left, color=colour, label=name, height=0.6)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axis.invert_yaxis()
    axis.set_xlabel("seconds", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, ncols=len(names), loc="lower left", bbox_to_anchor=(0, 1))
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
