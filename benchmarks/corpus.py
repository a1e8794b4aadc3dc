"""How long `locus data build` takes on an annotation file of COCO's size, and how much memory it needs.

    python benchmarks/corpus.py [--pictures 118287] [--boxes 600000] [--workers 2]

Writes a made-up file with polygons (about 350 MB) and empty picture files to a temporary folder, then runs the command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np


def write_annotations(path: Path, pictures: int, boxes: int, seed: int = 0) -> None:
    """COCO's layout with boxes of COCO's spread of sizes and polygons of 24 points."""
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.integers(0, pictures, boxes))
    sides = np.exp(rng.normal(np.log(60), 0.9, (boxes, 2))).clip(4, 400).round(2)
    corner = (rng.random((boxes, 2)) * (np.array([640, 480]) - sides).clip(0)).round(2)
    polygon = json.dumps(rng.random(48).round(2).tolist())
    with path.open("w") as file:
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 480} for i in range(pictures)]
        file.write('{"images": ' + json.dumps(images) + ', "categories": [{"id": 1, "name": "thing"}], "annotations": [')
        for k in range(boxes):
            (x, y), (w, h) = corner[k].tolist(), sides[k].tolist()
            box = f"[{x}, {y}, {round(min(w, 640 - x), 2)}, {round(min(h, 480 - y), 2)}]"
            head = f'"id": {k}, "image_id": {owner[k]}, "category_id": 1, "iscrowd": 0, "bbox": {box}'
            file.write(("," if k else "") + f'{{"segmentation": [{polygon}], {head}}}')
        file.write("]}")


def _memory(pid: int) -> int:
    """Memory of a process and its children, bytes; pages they share are counted once (Pss)."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.parent.name) == pid or int(status.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                rollup = (status.parent / "smaps_rollup").read_text()
                total += 1024 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
        except (OSError, IndexError, StopIteration):
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=118_287)
    parser.add_argument("--boxes", type=int, default=600_000)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for i in range(asked.pictures):
            (folder / "images" / f"{i:012d}.jpg").touch()
        write_annotations(folder / "instances.json", asked.pictures, asked.boxes)
        size = (folder / "instances.json").stat().st_size / 2**20
        command = [sys.executable, "-m", "locus_lightning", "data", "build", "--annotations", str(folder / "instances.json")]
        command += [
            "--images",
            str(folder / "images"),
            "--out",
            str(folder / "corpus"),
            "--preset",
            "paper",
            "--workers",
            str(asked.workers),
        ]
        started = time.perf_counter()
        process = subprocess.Popen(command)
        peak = 0

        def watch() -> None:
            nonlocal peak
            while process.poll() is None:
                peak = max(peak, _memory(process.pid))
                time.sleep(0.1)

        watcher = threading.Thread(target=watch)
        watcher.start()
        process.wait()
        watcher.join()
        took = time.perf_counter() - started
    print(json.dumps({"annotations_mb": round(size), "boxes": asked.boxes, "workers": asked.workers, "seconds": round(took, 1),
                      "peak_memory_mb": round(peak / 2**20)}))  # fmt: skip


if __name__ == "__main__":
    main()
