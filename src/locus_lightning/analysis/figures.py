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
