"""What a corpus holds, in numbers for its manifest: files, counts, quantiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from locus_lightning.data.coco.index import CueEntry
from locus_lightning.data.corpus import corpus


def files_of(folder: Path) -> dict[str, Any]:
    """Size and hash of every file of the corpus."""
    files = sorted((*(folder / "index").iterdir(), *(folder / "shards").glob("*.parquet")))
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": corpus.digest(p)} for p in files}


def counts_of(entries: Iterable[CueEntry]) -> dict[str, Any]:
    """Cues, pictures, size bins and labels."""
    entries = list(entries)
    return {
        "cues": len(entries),
        "images": len({e.path for e in entries}),
        "bins": dict(sorted(Counter(e.window.size_bin for e in entries).items())),
        "labels": len({e.window.label for e in entries}),
    }


def statistics_of(entries: Sequence[CueEntry]) -> dict[str, Any]:
    """Quantiles of side, share of the picture and scale; the most frequent labels."""
    sides = np.array([(e.window.box[2] - e.window.box[0], e.window.box[3] - e.window.box[1]) for e in entries], dtype=float)
    areas = np.array([e.size[0] * e.size[1] for e in entries], dtype=float)
    columns = {
        "width": sides[:, 0], "height": sides[:, 1], "share": sides.prod(axis=1) / areas, "scale": np.array([e.window.scale for e in entries]),
    }  # fmt: skip
    at = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    table = {name: {f"{q:g}": round(float(v), 5) for q, v in zip(at, np.quantile(c, at), strict=True)} for name, c in columns.items()}
    return {**table, "labels": dict(Counter(e.window.label for e in entries).most_common(20))}
