"""``locus analyze``: where a model looks, alone or beside another."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from locus_lightning.analysis.attention import Looking, look
from locus_lightning.analysis.figures import by_layer, heatmaps
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.data.smallstar import write_smallstar
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.evaluation.base import Item
from locus_lightning.evaluation.vstar import read_vstar
from locus_lightning.rollout.base import Sampling
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.runs import open_model


def analyze_command(arguments: Sequence[str]) -> int:
    """Attention of one model or two on questions with boxes."""
    parser = argparse.ArgumentParser(
        "locus analyze", description="Where a model looks, on image + question, beside the boxes it should look at."
    )
    commands = parser.add_subparsers(dest="what", required=True)
    attention = commands.add_parser(
        "attention",
        help="Attention-in-Box by layer, Peak-in-Box, heatmaps",
        description="Attention from the position that predicts the answer to the image (paper, section 5): the share of it in the boxes "
        "asked for, by layer and of the layer-averaged map; whether its peak is in them; heatmaps. Writes attention.json, by_layer.png and "
        "heatmaps.png.",
        epilog="example: locus analyze attention base-model --against runs/llava/version_0 --suite vstar_bench",
    )
    attention.add_argument("model", help="a Hugging Face folder or name, an adapter's folder, a run's folder, or a .ckpt in one")
    attention.add_argument("--against", metavar="MODEL", help="a second model, drawn beside the first on the same scale")
    attention.add_argument("--suite", default="smallstar", help="smallstar (made on the spot), or a folder in V*Bench's layout")
    attention.add_argument("--number", type=int, default=100, help="questions of each kind at most (default 100)")
    attention.add_argument("--at", choices=["first_generated", "answer"], default="first_generated",
                           help="the position that predicts the first generated token, or the first token inside <answer>")  # fmt: skip
    attention.add_argument("--pictures", type=int, default=6, help="heatmaps to draw (default 6)")
    attention.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    attention.add_argument("--out", type=Path, default=Path("runs/analysis"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    if options.number < 1 or options.pictures < 0:
        raise ConfigError(f"--number is {options.number} (at least 1), --pictures {options.pictures} (at least 0).")
    with TemporaryDirectory() as folder:
        items = questions(options.suite, options.number, Path(folder))
        names = [options.model, *([options.against] if options.against else [])]
        found = {}
        for name in names:
            backbone = open_model(name, options.dtype)
            found[name] = [
                look(backbone, item.question(), words_before(backbone, item) if options.at == "answer" else "")
                for item in track(items, description=name)
            ]
            del backbone
        write(options.out, items, found, options.at, options.pictures)
    return 0


def questions(suite: str, number: int, scratch: Path) -> list[Item]:
    """Questions with boxes, at most ``number`` of each kind.

    Raises:
        DataError: none has boxes.
    """
    folder = Path(suite).expanduser()
    if suite == "smallstar":
        folder = scratch / "smallstar"
        write_smallstar(folder, number)
    seen: dict[str, int] = {}
    items = []
    for item in read_vstar(folder):
        seen[item.kind] = seen.get(item.kind, 0) + bool(item.boxes)
        if item.boxes and seen[item.kind] <= number:
            items.append(item)
    if not items:
        raise DataError(f"no question of {folder} has boxes beside its picture; attention needs to know where to look.")
    return items


def words_before(backbone: HFBackbone, item: Item) -> str:
    """What the model itself writes up to its answer: all before the end of ``<answer>``, or nothing where it writes none."""
    (prompt,) = backbone.encode([item.question()])
    ((made,),) = HFRollout().generate(backbone, [prompt], 1, Sampling(1024, temperature=0.0))
    text = backbone.decode(made.ids_T)
    return text[: text.index("<answer>") + len("<answer>")] if "<answer>" in text else ""


def write(folder: Path, items: Sequence[Item], found: dict[str, list[Looking]], at: str, pictures: int) -> None:
    """JSON, figures and a table."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = sorted({item.kind for item in items})
    report: dict[str, Any] = {"at": at, "questions": len(items), "models": {}}
    table = Table(title=f"attention to the image at {at.replace('_', ' ')}: share in the boxes (AIB), peak in them")
    for title in ("model", "AIB", "evenly spread", "peak in box", *(f"AIB, {kind}" for kind in kinds)):
        table.add_column(title, overflow="fold")
    layers, means = {}, {}
    for name, looks in found.items():
        shares = [seen.in_box(item.boxes) for seen, item in zip(looks, items, strict=True)]
        peaks = [seen.peak_in_box(item.boxes) for seen, item in zip(looks, items, strict=True)]
        covered = [float(seen.inside(item.boxes).float().mean()) for seen, item in zip(looks, items, strict=True)]
        layers[name], means[name] = [share for _, share in shares], mean(share for share, _ in shares)
        kind_means = {k: mean(s for (s, _), item in zip(shares, items, strict=True) if item.kind == k) for k in kinds}
        report["models"][name] = {
            "aib": means[name], "peak_in_box": mean(peaks), "aib_by_layer": [mean(column) for column in zip(*layers[name], strict=True)],
            "aib_by_kind": kind_means, "share_of_cells": mean(covered),
            "by_question": [{"id": item.id, "aib": share, "peak_in_box": peak} for item, (share, _), peak in zip(items, shares, peaks, strict=True)],
        }  # fmt: skip
        table.add_row(name, f"{means[name]:.3f}", f"{mean(covered):.3f}", f"{mean(peaks):.2f}", *(f"{kind_means[k]:.3f}" for k in kinds))
    table.caption = f"{len(items)} questions; `evenly spread` is what attention without aim would have"
    by_layer(folder / "by_layer.png", layers, means)
    if pictures:
        every = range(0, len(items), max(1, len(items) // pictures))
        rows = [(items[i].picture(), items[i].boxes, items[i].text.split("\n")[0], {n: found[n][i].heatmap() for n in found})
                for i in list(every)[:pictures]]  # fmt: skip
        heatmaps(folder / "heatmaps.png", rows)
    (folder / "attention.json").write_text(json.dumps(report, indent=2) + "\n")
    Console().print(table)
    print(f"figures and attention.json: {folder}")
