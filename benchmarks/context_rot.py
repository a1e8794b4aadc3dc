"""Does a model of drawn scenes suffer from visual context rot? Accuracy by number of objects and by target size, full against suppressed.

    uv run python benchmarks/context_rot.py locus-tiny
    uv run python benchmarks/context_rot.py runs/tiny_disease/version_0 --number 400

Multiple-choice questions about one object's colour or shape. Suppressed: all but the target is black, canvas and scale kept. Beside them the
IoU of the target, asked for by its name, where the question was answered rightly and where wrongly. A base fits a study of transfer where
suppressed is at least 10 points above full at 6 or more objects, and objects that are found are answered rightly.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from locus_lightning.analysis.interventions import Asked, context, grounding
from locus_lightning.backbones.base import Backbone
from locus_lightning.backbones.open import open_model
from locus_lightning.data.synthetic.qa_examples import with_options
from locus_lightning.data.synthetic.scenes import SceneCues
from locus_lightning.data.synthetic.smallstar import direct_attribute
from locus_lightning.evaluation.base import find
from locus_lightning.evaluation.extract import extract_letter
from locus_lightning.evaluation.runner import paired_bootstrap
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.types import Question

OBJECTS, SIZES = (1, 3, 6, 9), ("tiny", "small")
ASK = "Where is the {expression}?"
_STREAM = 0xC0417


def cell(backbone: Backbone, objects: int, size: str, number: int) -> list[Asked]:
    """Questions about a target of one size among so many objects; the same for every model."""
    scenes = SceneCues(image_size=192, objects=(objects, objects), object_size=(0.07, 0.2))
    asked: list[Asked] = []
    tries = 0
    while len(asked) < number:
        rng = np.random.default_rng([_STREAM, objects, SIZES.index(size), tries])
        tries += 1
        scene = scenes.draw(rng)
        made = direct_attribute(scene, size, rng) if len(scene.boxes) == objects else None
        if made is None:
            continue
        text, options, (words,), (target,) = made
        lettered, label = with_options(text, options, rng)
        letters = dict(zip("ABCDEFGH", [line.split(") ", 1)[1] for line in lettered.split("\n")[1 : 1 + len(options)]], strict=False))

        def right(answer: str, letters: dict[str, str] = letters, label: str = label) -> bool:
            return extract_letter(answer, letters) == label

        question = Question(f"{objects}-{size}-{tries}", scene.image, lettered.replace("{", "{{").replace("}", "}}"))
        asked.append(Asked(question, (scene.boxes[target],), right, (find(scene.image, words, backbone, words=ASK),)))
    return asked


def diagnose(name: str, number: int) -> dict[str, Any]:
    """Figures of every cell of one model."""
    backbone, engine = open_model(name, "auto"), HFRollout()
    cells = {}
    for objects in OBJECTS:
        for size in SIZES:
            asked = cell(backbone, objects, size, number)
            pairs, found = context(backbone, engine, asked), grounding(backbone, engine, asked)
            gain = paired_bootstrap([float(alone) - float(full) for full, alone in pairs])
            good, bad = ([row.iou for row in found if row.right is right] for right in (True, False))
            where_found = [row.right for row in found if row.iou >= 0.5]
            cells[f"{objects} {size}"] = {
                "full": mean(full for full, _ in pairs),
                "suppressed": mean(alone for _, alone in pairs),
                "gain": gain,
                "iou": mean(row.iou for row in found),
                "iou_right": mean(good) if good else None,
                "iou_wrong": mean(bad) if bad else None,
                "found": len(where_found) / len(found),
                "right_where_found": mean(where_found) if where_found else None,
            }
    return cells


def main() -> None:
    """A table a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="locus-tiny, a folder, a run's folder, or a .ckpt in one")
    parser.add_argument("--number", type=int, default=200, help="questions a cell (default 200)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    report = {}
    for name in options.models:
        report[name] = diagnose(name, options.number)
        table = Table(title=f"{name}: {options.number} questions a row, four options each")
        for title in (
            "objects, target",
            "full",
            "suppressed",
            "gain, points (95 %)",
            "IoU",
            "where right",
            "where wrong",
            "IoU >= 0.5",
            "right there",
        ):
            table.add_column(title, justify="left" if title.startswith("objects") else "right")
        for row, f in report[name].items():
            gain, low, high = (100 * value for value in f["gain"])
            shares = [100 * f["full"], 100 * f["suppressed"]]
            ious = ["" if f[key] is None else f"{f[key]:.2f}" for key in ("iou", "iou_right", "iou_wrong", "found", "right_where_found")]
            table.add_row(row, *(f"{share:.1f}" for share in shares), f"{gain:+.1f} ({low:+.1f} to {high:+.1f})", *ious)
        Console(width=150).print(table)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
