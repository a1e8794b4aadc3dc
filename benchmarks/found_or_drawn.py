"""Is the object found, and is its box drawn well? Splits the IoU of answers to drawn scenes into the two.

    uv run locus predict --config configs/tiny.yaml
    uv run locus predict --config configs/tiny.yaml --ckpt_path last
    uv run python benchmarks/found_or_drawn.py runs/tiny/version_*/predictions.jsonl

The scenes are drawn again, to know where all their objects are. Found: the object whose centre is nearest to that of the answer is the one
that was asked for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import yaml

from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.data.source import CueKey
from locus_lightning.data.synthetic.scenes import Scene, SceneCues
from locus_lightning.types import Box

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tiny.yaml"


class Remembering(SceneCues):
    """Keeps the scene that was drawn last, with all its objects."""

    last: Scene

    def draw(self, rng: np.random.Generator) -> Scene:
        self.last = super().draw(rng)
        return self.last


def nearest(box: Box, objects: tuple[Box, ...]) -> int:
    """Index of the object whose centre is nearest."""
    centres = np.array([(x1 + x2, y1 + y2) for x1, y1, x2, y2 in (box, *objects)]) / 2
    return int(np.linalg.norm(centres[1:] - centres[0], axis=1).argmin())


def main() -> None:
    """A line a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, nargs="+", help="predictions.jsonl of `locus predict --config configs/tiny.yaml`")
    parser.add_argument("--seed", type=int, default=0, help="data.seed of the runs (default 0)")
    options = parser.parse_args()
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text())["data"]["source"]["init_args"]
    source = Remembering(**{**settings, "cue_sampler": ObjectCues(**settings["cue_sampler"]["init_args"])})
    held_out = source.dataset("val", options.seed)
    for path in options.predictions:
        found, drawn, chance = [], [], []
        for line in path.read_text().splitlines():
            row = json.loads(line)
            sample = held_out[CueKey(0, int(row["id"].split("-")[-1]))]
            if list(sample.box) != row["true_box"]:
                parser.error(f"{path}: {row['id']} is another scene here; give --seed as the runs had it.")
            objects = source.last.boxes
            found.append(row["box"] is not None and nearest(row["box"], objects) == nearest(sample.box, objects))
            chance.append(1 / len(objects))
            drawn += [row["iou"]] if found[-1] else []
        print(f"{path}: found {mean(found):.3f} of {len(found)} (chance {mean(chance):.3f}); mean IoU where found {mean(drawn):.3f}")


if __name__ == "__main__":
    main()
