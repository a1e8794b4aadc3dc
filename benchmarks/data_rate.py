"""Cue samples a second through the loader, for drawn scenes and for photos from a folder and from shards."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image


@contextmanager
def sources(photos: int = 240) -> Iterator[dict[str, Any]]:
    """Scenes, and a corpus of made-up 640 x 480 photos, in a folder and in shards."""
    from locus_lightning.data.corpus.build import BuildSettings, build
    from locus_lightning.data.corpus.corpus import CorpusCues
    from locus_lightning.data.synthetic.scenes import SceneCues

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        images, annotations = [], []
        for i in range(photos):
            coarse = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
            coarse.save(folder / "photos" / f"{i}.jpg", quality=90)  # as large a file as a photo's, about 60 kB
            images.append({"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480})
            for k in range(10):
                x, y, w, h = rng.integers(0, 500), rng.integers(0, 380), rng.integers(20, 100), rng.integers(20, 90)
                annotations.append({"id": 10 * i + k, "image_id": i, "bbox": [float(v) for v in (x, y, w, h)], "category_id": 1})
        (folder / "a.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
        for shards in (False, True):
            settings = BuildSettings(str(folder / "a.json"), str(folder / "photos"), shards=shards, val_fraction=0.1)
            build(settings, folder / f"corpus-{shards}")
        yield {
            "drawn scenes, 192 px": SceneCues(train_size=100_000),
            "photos, folder": CorpusCues(str(folder / "corpus-False")),
            "photos, shards": CorpusCues(str(folder / "corpus-True")),
        }


def rates(seconds: float = 6.0) -> list[dict[str, Any]]:
    """Samples a second by source and number of workers, after the workers have started."""
    from locus_lightning.data.datamodule import CueDataModule

    found = []
    with sources() as every:
        for title, source in every.items():
            for workers in (0, 1, 2):
                data = CueDataModule(source, batch_size=16, num_workers=workers)
                data.setup("fit")
                number, started = 0, 0.0
                for batch in _endless(data):
                    if not started:
                        started = perf_counter()
                        continue
                    number += len(batch)
                    if perf_counter() - started > seconds:
                        break
                found.append({"source": title, "workers": workers, "samples_per_s": round(number / (perf_counter() - started), 1)})
                print(json.dumps(found[-1]), flush=True)
    return found


def _endless(data: Any) -> Iterator[Any]:
    while True:
        yield from (batch for batch in data.train_dataloader() if batch)


def needed(results: Path) -> dict[str, float]:
    """Prompts a second that each measured step uses up: from the JSON files in ``results``."""
    found = {}
    for path in sorted(results.glob("*.json")):
        report = json.loads(path.read_text())
        locus = report.get("engines", {}).get("locus", {})
        if "seconds" in locus:
            ((name, workload),) = report["workload"].items()
            found[name] = round(workload["prompts"] / locus["seconds"]["step"], 2)
    return found
