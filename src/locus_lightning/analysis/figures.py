"""Figures of where models look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from locus_lightning.types import Box

_COLOURS = ("#5b6b8c", "#d1603d")


def by_layer(path: Path, layers: Mapping[str, Sequence[Sequence[float]]], means: Mapping[str, float]) -> None:
    """Attention-in-Box by layer, a line a model: mean over questions, with a band of two standard errors.

    ``layers``: for each model (questions, layers); ``means``: the mean of the layer-averaged map's.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, rows) in zip(_COLOURS, layers.items(), strict=False):
        values = np.array(rows)
        mean, error = values.mean(0), values.std(0) / np.sqrt(len(values))
        x = np.arange(1, len(mean) + 1)
        axes.plot(x, mean, color=colour, marker="o", markersize=3, label=f"{name}: {means[name]:.3f} of the layer-averaged map")
        axes.fill_between(x, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("layer of the language model")
    axes.set_ylabel("Attention-in-Box")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def heatmaps(path: Path, rows: Sequence[tuple[Image.Image, Sequence[Box], str, Mapping[str, np.ndarray]]]) -> None:
    """Images with the boxes asked for, and where each model looks, on one scale a row; little attention is transparent."""
    models = list(rows[0][3])
    columns = 1 + len(models)
    figure = Figure(figsize=(3 * columns, 3.1 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (image, boxes, title, maps) in zip(grid, rows, strict=True):
        top = max(float(heat.max()) for heat in maps.values())
        low = max(float(np.percentile(heat, 60)) for heat in maps.values())
        for axes, name in zip(line, ["", *models], strict=True):
            axes.imshow(image if not name else image.convert("L").convert("RGB"))
            if name:
                large = np.asarray(Image.fromarray(maps[name].astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR))
                alpha = np.clip((large - low) / max(top - low, 1e-12), 0, 1) ** 0.7
                axes.imshow(large, cmap="inferno", vmin=low, vmax=top, alpha=0.85 * alpha)
            for x1, y1, x2, y2 in boxes:
                axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="#35c759", linewidth=1.5))
            axes.set_title(name or title, fontsize=7, wrap=True)
            axes.axis("off")
    figure.savefig(path, dpi=110)


def context_bars(path: Path, accuracies: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    """Accuracy with the full image and with the targets alone; for each model, kind -> (full, alone)."""
    models, kinds = list(accuracies), list(next(iter(accuracies.values())))
    figure = Figure(figsize=(2.2 + 2.2 * len(kinds), 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / (2 * len(models))
    for m, name in enumerate(models):
        for k, what in enumerate(("full image", "targets alone")):
            x = np.arange(len(kinds)) - 0.4 + width * (2 * m + k + 0.5)
            values = [100 * accuracies[name][kind][k] for kind in kinds]
            bars = axes.bar(x, values, width * 0.92, color=_COLOURS[m % 2], alpha=(0.45, 1.0)[k], label=f"{name}, {what}")
            axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(kinds)), [kind.replace("_", " ") or "all" for kind in kinds])
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 108)
    axes.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)


def grounding_plots(
    path: Path, models: Mapping[str, tuple[Sequence[Mapping[str, float | None]], Sequence[float], Sequence[float]]]
) -> None:
    """For each model, a row: accuracy by IoU of the queried object, and IoU of rightly and wrongly answered questions.

    ``models``: (bins as :func:`~locus_lightning.analysis.interventions.by_iou` gives them, IoUs of right ones, of wrong ones).
    """
    figure = Figure(figsize=(9, 3.2 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), 2, squeeze=False)
    for (left, right), (name, (bins, good, bad)) in zip(grid, models.items(), strict=True):
        shown = [row for row in bins if row["accuracy"] is not None]
        heights = [100 * float(row["accuracy"] or 0) for row in shown]
        bars = left.bar([f"{row['from']:g}-{row['to']:g}" for row in shown], heights, color=_COLOURS[0])
        left.bar_label(bars, [f"n={row['questions']}" for row in shown], fontsize=7)
        left.set_ylim(0, 108)
        left.set_ylabel("accuracy, %")
        left.set_xlabel("IoU of the queried object")
        left.set_title(name, fontsize=8)
        edges = np.linspace(0, 1, 11)
        for values, colour, label in ((good, "#2e8b57", "answered rightly"), (bad, "#b3261e", "wrongly")):
            if len(values):
                right.hist(values, edges, density=True, histtype="stepfilled", alpha=0.35, color=colour, label=f"{label}, n={len(values)}")
                right.axvline(float(np.mean(values)), color=colour, linewidth=1.5)
        right.set_xlabel("IoU of the queried object (line: mean)")
        right.set_ylabel("density")
        right.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)
