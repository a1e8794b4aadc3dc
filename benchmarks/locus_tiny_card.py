"""Ships a finished pretraining run as locus-tiny: its weights into the package, and a card with what they score.

    uv run locus fit --config configs/tiny_pretrain.yaml
    uv run python benchmarks/locus_tiny_card.py runs/tiny_pretrain/version_0

A run that was stopped and continued has several folders: give ``--minutes`` of all, and say with ``--history`` what else is to be known.

Scores are what ``locus validate --config configs/tiny.yaml`` and ``locus eval locus-tiny --suite smallstar`` give; ``--scores-only`` measures
the shipped weights again. tests/integration/test_locus_tiny.py holds card and weights together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from locus_lightning.backbones.checkpoint import SHIPPED
from locus_lightning.data.synthetic.qa_examples import TASKS as LESSONS

ROOT = Path(__file__).resolve().parents[1]
TASKS = {
    "ground": "the box of a phrase, mean IoU",
    "list": "all objects with boxes, mean IoU",
    "list_boxes": "boxes with names, mean IoU",
    "name_box": "the object in a box, exact words",
    "name_crop": "the object in a crop, exact words",
    "attribute": "its colour or shape",
    "choose_attribute": "likewise, of four options",
    "count": "how many",
    "relation": "left, right, above, below",
    "choose_relation": "likewise, of two options",
}


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Held-out cue search and SmallStar of the shipped weights, through the command line."""
    with tempfile.TemporaryDirectory() as work:
        for words in (
            ["validate", "--config", str(ROOT / "configs" / "tiny.yaml"), "--trainer.enable_progress_bar=false"],
            ["eval", str(folder), "--suite", "smallstar", "--batch-size", "50", "--out", "eval"],
        ):
            subprocess.run([sys.executable, "-m", "locus_lightning", *words], cwd=work, check=True)
        (cues,), (small,) = Path(work).rglob("figures.json"), Path(work).rglob("result.json")
        found = json.loads(cues.read_text())
        kept = ("iou", "acc0.5", "acc0.75", "iou_tiny", "iou_small", "parse_rate", "floor")
        return {"cues": {name: found[name] for name in kept}, "smallstar": json.loads(small.read_text())["figures"]}


def card(facts: dict[str, Any]) -> str:
    """The model card, from what ``card.json`` holds."""
    scores, run = facts["scores"], facts["run"]
    lessons = "\n".join(f"| {words} | {run['lessons'][name]:.3f} |" for name, words in TASKS.items() if name in run["lessons"])
    small = "\n".join(f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in scores["smallstar"].items())
    cues = scores["cues"]
    return f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
---

# locus-tiny

A vision-language model of {facts["parameters"]:,} parameters for drawn scenes: LLaVA with a CLIP tower (96 px, patches of 12) and a Qwen3
of four layers, its own tokenizer, boxes in pixels of its input. It names objects, finds them by a phrase, lists them, answers
questions about colour, shape, number and place; before it says which of two is further left or higher, it says where both are.
It is there to be trained on cue search, which it has hardly been taught. It knows nothing of photos.

| | |
|---|---|
| data | scenes drawn as they are needed (`SceneQA`); no picture twice |
| lessons | {run["steps"]:,} steps of {run["batch"]} questions about as many pictures |
| time | {run["minutes"]:.0f} minutes on {run["machine"]} |
| command | `uv run locus fit --config configs/tiny_pretrain.yaml`, then `uv run python benchmarks/locus_tiny_card.py RUN` |
| versions | {", ".join(f"{name} {version}" for name, version in run["versions"].items() if name in ("python", "torch", "transformers", "lightning"))} |

{run["history"]}

## Cue search, 256 held-out scenes (`locus validate --config configs/tiny.yaml`)

Mean IoU {cues["iou"]:.3f} (tiny cues {cues["iou_tiny"]:.3f}, small {cues["iou_small"]:.3f}), ACC@0.5 {cues["acc0.5"]:.3f}, answers with one valid box
{cues["parse_rate"]:.3f}; the best box that needs no looking {cues["floor"]:.3f}.

## SmallStar (`locus eval locus-tiny --suite smallstar`)

Guessing gives 0.25 for direct attributes and 0.5 for relative position.

| kind | right |
|---|---|
{small}

## Held-out lessons of the last stage ({run["lessons_each"]} of each kind)

| lesson | score |
|---|---|
{lessons}
"""


def main() -> None:
    """Copy, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run of configs/tiny_pretrain.yaml")
    parser.add_argument("--scores-only", action="store_true", help="measure the shipped weights again")
    parser.add_argument("--minutes", type=float, help="how long training took; default: from the run's files")
    parser.add_argument("--history", default="Trained in one go by the command above.", help="a sentence on how it came about")
    options = parser.parse_args()
    folder = SHIPPED["locus-tiny"]
    if options.scores_only:
        facts = json.loads((folder / "card.json").read_text())
    elif options.run and (options.run / "summary.json").is_file():
        summary = json.loads((options.run / "summary.json").read_text())
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(options.run / "model", folder)
        run = about_run(summary, options.run) | {"history": options.history}
        if options.minutes:
            run["minutes"] = options.minutes
        facts = {"run": run, "parameters": parameters(folder)}
    else:
        parser.error("give the folder of a finished run (it holds summary.json), or --scores-only")
    facts["scores"] = measure(folder)
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(card(facts))
    print(card(facts))


def about_run(summary: dict[str, Any], run: Path) -> dict[str, Any]:
    """Steps, time, machine and lesson scores."""
    after = summary["after"]
    lessons = {name.removeprefix("task_"): value for name, value in after.items() if name.startswith("task_")}
    started, ended = (path.stat().st_mtime for path in (run / "config.yaml", run / "summary.json"))
    return {
        "steps": summary["steps"],
        "batch": yaml.safe_load((run / "config.yaml").read_text())["data"]["batch_size"],
        "minutes": round((ended - started) / 60, 1),
        "machine": f"{os.cpu_count()} cores ({platform.machine()})",
        "versions": summary["versions"],
        "lessons": lessons,
        "lessons_each": int(after["samples"]) * 2 // len(LESSONS),
    }


def parameters(folder: Path) -> int:
    """Numbers in the weights."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - not a dict


if __name__ == "__main__":
    main()
