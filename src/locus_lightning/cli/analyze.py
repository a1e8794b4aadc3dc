"""``locus analyze``: where a model looks and what its answers depend on, alone or beside another."""

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

from locus_lightning.analysis.attention_maps import AttentionMap, attention_map
from locus_lightning.analysis.figures import by_layer, context_bars, grounding_plots, heatmaps
from locus_lightning.analysis.interventions import Asked, Grounded, by_iou, context, grounding
from locus_lightning.backbones.base import Backbone
from locus_lightning.backbones.open import open_model
from locus_lightning.data.synthetic.smallstar import write_smallstar
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.evaluation.base import FIND, Item, find, limited, only_readable
from locus_lightning.evaluation.benchmarks.vstar import read_vstar
from locus_lightning.evaluation.extract import extract_letter
from locus_lightning.evaluation.runner import paired_bootstrap
from locus_lightning.rollout.base import RolloutEngine, ask
from locus_lightning.rollout.hf import HFRollout

_WHAT = {
    "attention": (
        "Attention-in-Box by layer, Peak-in-Box, heatmaps",
        "Attention from the position that predicts the answer to the image (paper, section 5): the share of it in the boxes asked for, by "
        "layer and of the layer-averaged map; whether its peak is in them; heatmaps. Writes attention.json, by_layer.png, heatmaps.png.",
    ),
    "context": (
        "accuracy with all but the targets blacked out",
        "Does the rest of the image get in the way? Questions are asked with the full image, and with all but the target boxes black, canvas "
        "and scale kept. Writes context.json and context.png.",
    ),
    "grounding": (
        "IoU of the queried object against answer correctness",
        "Are questions answered rightly where the object is found? The target is asked for by name, the question as it is. Writes "
        "grounding.json and grounding.png.",
    ),
}


def analyze_command(arguments: Sequence[str]) -> int:
    """One model or two, on questions with boxes."""
    parser = argparse.ArgumentParser(
        "locus analyze", description="What a model looks at and depends on, on image + question with target boxes."
    )
    commands = parser.add_subparsers(dest="what", required=True)
    for name, (short, long) in _WHAT.items():
        example = f"example: locus analyze {name} base-model --against runs/llava/version_0 --suite vstar_bench"
        sub = commands.add_parser(name, help=short, description=long, epilog=example)
        sub.add_argument("model", help="a Hugging Face folder or name, an adapter's folder, a run's folder, or a .ckpt in one")
        sub.add_argument("--against", metavar="MODEL", help="a second model, drawn beside the first on the same scale")
        sub.add_argument("--suite", default="smallstar", help="smallstar (made on the spot), or a folder in V*Bench's layout")
        sub.add_argument("--number", type=int, default=100, help="questions of each kind at most (default 100)")
        sub.add_argument(
            "--dtype",
            default="auto",
            choices=["auto", "float32", "bfloat16", "float16"],
            help="of the weights (default auto: bfloat16 on a GPU, float32 on a CPU)",
        )
        sub.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint; read it first")
        sub.add_argument("--out", type=Path, default=Path("runs/analysis"), metavar="FOLDER")
        if name == "attention":
            sub.add_argument("--at", choices=["first_generated", "answer"], default="first_generated",
                             help="the position that predicts the first generated token, or the first token inside <answer>")  # fmt: skip
            sub.add_argument("--pictures", type=int, default=6, help="heatmaps to draw (default 6)")
        if name == "grounding":
            sub.add_argument("--ask", default=FIND, metavar="WORDS",
                             help="how the box is asked for, with {expression} for the object's name and {unit} for the model's own unit "
                                  "(default: %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.number < 1 or getattr(options, "pictures", 0) < 0:
        raise ConfigError(f"--number is {options.number}; it is at least 1, --pictures at least 0.")
    if "{expression}" not in getattr(options, "ask", FIND):
        raise ConfigError(f"--ask {options.ask!r} has no {{expression}} in it, where the name of the object belongs.")
    with TemporaryDirectory() as folder:
        items = questions(options.suite, options.number, Path(folder))
        of_models: dict[str, Any] = {}
        for name in [options.model, *([options.against] if options.against else [])]:
            backbone = open_model(name, options.dtype, trust_remote_code=options.trust_remote_code)
            of_models[name] = _study(options, backbone, items, name)
            del backbone
        options.out.mkdir(parents=True, exist_ok=True)
        if options.what == "attention":
            write(options.out, items, of_models, options.at, options.pictures)
        else:
            (write_context if options.what == "context" else write_grounding)(options.out, items, of_models)
    return 0


def _study(options: argparse.Namespace, backbone: Backbone, items: Sequence[Item], name: str) -> Any:
    engine = HFRollout()
    if options.what == "context":
        return context(backbone, engine, asked_of(backbone, items))
    if options.what == "grounding":
        return grounding(backbone, engine, asked_of(backbone, items, options.ask))
    return [
        attention_map(backbone, item.question(), words_before(backbone, engine, item) if options.at == "answer" else "")
        for item in track(items, description=name)
    ]


def asked_of(backbone: Backbone, items: Sequence[Item], words: str = FIND) -> list[Asked]:
    """Items as they are asked, and a question for the box of every target that has a name."""
    questions_asked = []
    for item in items:
        question = item.question()
        targets = tuple(find(question.image, name, backbone, words=words) for name in json.loads(item.facts.get("targets", "[]")))

        def right(text: str, item: Item = item) -> bool:
            return extract_letter(text, item.options) == item.label

        questions_asked.append(Asked(question, item.boxes, right, targets))
    return questions_asked


def write_context(folder: Path, items: Sequence[Item], by_model: dict[str, list[tuple[bool, bool]]]) -> None:
    """JSON, bars and a table."""
    kinds = ["", *sorted({item.kind for item in items})]
    table = Table(title=f"accuracy, percent: full image / targets alone ({len(items)} questions)")
    table.add_column("model", overflow="fold")
    for kind in kinds:
        table.add_column(kind.replace("_", " ") or "all", justify="right")
    accuracies = {}
    for name, rows in by_model.items():
        of = {k: [row for row, item in zip(rows, items, strict=True) if k in ("", item.kind)] for k in kinds}
        accuracies[name] = {k: (mean(full for full, _ in some), mean(alone for _, alone in some)) for k, some in of.items()}
        table.add_row(name, *(f"{100 * full:.1f} / {100 * alone:.1f}" for full, alone in accuracies[name].values()))
    report: dict[str, Any] = {
        "questions": len(items),
        "models": {n: {k or "all": {"full": a, "alone": b} for k, (a, b) in f.items()} for n, f in accuracies.items()},
    }
    context_bars(folder / "context.png", accuracies)
    Console().print(table)
    report |= tell_gain("accuracy, full image", {n: [float(full) for full, _ in rows] for n, rows in by_model.items()})
    (folder / "context.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"context.json and context.png: {folder}")


def write_grounding(folder: Path, items: Sequence[Item], by_model: dict[str, list[Grounded]]) -> None:
    """JSON, the two plots and a table."""
    table = Table(title=f"IoU of the queried object and the answer to the question ({len(items)} questions)")
    for title in ("model", "mean IoU", "IoU where right", "IoU where wrong", "accuracy"):
        table.add_column(title, overflow="fold")
    models, plots = {}, {}
    for name, rows in by_model.items():
        good, bad = ([row.iou for row in rows if row.right is right] for right in (True, False))
        plots[name] = (by_iou(rows), good, bad)
        models[name] = {"mean_iou": mean(row.iou for row in rows), "accuracy": mean(row.right for row in rows), "by_iou": plots[name][0],
                        "iou_right": mean(good) if good else None, "iou_wrong": mean(bad) if bad else None}  # fmt: skip
        table.add_row(
            name,
            f"{models[name]['mean_iou']:.3f}",
            *(f"{mean(v):.3f}" if v else "none" for v in (good, bad)),
            f"{models[name]['accuracy']:.3f}",
        )
    grounding_plots(folder / "grounding.png", plots)
    Console().print(table)
    gain = tell_gain("IoU of the queried object", {n: [row.iou for row in rows] for n, rows in by_model.items()})
    (folder / "grounding.json").write_text(json.dumps({"questions": len(items), "models": models, **gain}, indent=2) + "\n")
    print(f"grounding.json and grounding.png: {folder}")


def tell_gain(what: str, by_model: dict[str, list[float]]) -> dict[str, Any]:
    """Print the mean gain of a second model by question with its 95 % interval, and give it as an entry of the report."""
    if len(by_model) != 2:
        return {}
    before, after = by_model.values()
    gain, low, high = paired_bootstrap([b - a for a, b in zip(before, after, strict=True)])
    print(f"{what}, second model less first, paired by question: {gain:+.3f} (95 % {low:+.3f} to {high:+.3f})")
    return {"gain": {"of": what, "mean": gain, "low": low, "high": high}}


def questions(suite: str, number: int, scratch: Path) -> list[Item]:
    """Questions with boxes, at most ``number`` of each kind.

    Raises:
        DataError: none has boxes.
    """
    folder = Path(suite).expanduser()
    if suite == "smallstar":
        folder = scratch / "smallstar"
        write_smallstar(folder, number)
    items = only_readable(limited([item for item in read_vstar(folder) if item.boxes], number))
    if not items:
        raise DataError(f"no question of {folder} has a usable picture with boxes beside it; attention needs to know where to look.")
    return items


def words_before(backbone: Backbone, engine: RolloutEngine, item: Item) -> str:
    """What the model itself writes up to its answer: all before the end of ``<answer>``, or nothing where it writes none."""
    (answer,) = ask(engine, backbone, [item.question()], 1024)
    text = answer.text.removeprefix(answer.prompt.opened)
    return text[: text.index("<answer>") + len("<answer>")] if "<answer>" in text else ""


def write(folder: Path, items: Sequence[Item], by_model: dict[str, list[AttentionMap]], at: str, pictures: int) -> None:
    """JSON, figures and a table."""
    kinds = sorted({item.kind for item in items})
    report: dict[str, Any] = {"at": at, "questions": len(items), "models": {}}
    table = Table(title=f"attention to the image at {at.replace('_', ' ')}: share in the boxes (AIB), peak in them")
    for title in ("model", "AIB", "evenly spread", "peak in box", *(f"AIB, {kind}" for kind in kinds)):
        table.add_column(title, overflow="fold")
    layers, means = {}, {}
    for name, looks in by_model.items():
        shares = [attention.in_box(item.boxes) for attention, item in zip(looks, items, strict=True)]
        peaks = [attention.peak_in_box(item.boxes) for attention, item in zip(looks, items, strict=True)]
        covered = [float(attention.inside(item.boxes).float().mean()) for attention, item in zip(looks, items, strict=True)]
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
        shown = range(0, len(items), max(1, len(items) // pictures))
        rows = [(items[i].picture(), items[i].boxes, items[i].text.split("\n")[0], {n: by_model[n][i].heatmap() for n in by_model})
                for i in list(shown)[:pictures]]  # fmt: skip
        heatmaps(folder / "heatmaps.png", rows)
    Console().print(table)
    report |= tell_gain("AIB", {n: [row["aib"] for row in facts["by_question"]] for n, facts in report["models"].items()})
    (folder / "attention.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"figures and attention.json: {folder}")
