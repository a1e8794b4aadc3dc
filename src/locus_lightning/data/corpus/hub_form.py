"""A corpus in the form that the ``datasets`` library reads: pictures, crops and boxes in parquet, with a card."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image
from rich.progress import track

from locus_lightning.cue_samplers.base import crop_cue
from locus_lightning.data.coco.index import CueEntry, open_file
from locus_lightning.data.corpus.corpus import Shards, from_table, read_manifest
from locus_lightning.data.corpus.files import write
from locus_lightning.errors import PictureError

_ROWS = 500
"""Rows of a file: some 100 MB of photos."""

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema(
    [("image", _PICTURE), ("crop", _PICTURE), ("box", pa.list_(pa.int32())), ("label", pa.string()), ("size_bin", pa.string()),
     ("image_id", pa.int64()), ("object_id", pa.int64())]
)  # fmt: skip
_FEATURES: dict[str, Any] = {
    "image": {"_type": "Image"},
    "crop": {"_type": "Image"},
    "box": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"},
    "label": {"dtype": "string", "_type": "Value"},
    "size_bin": {"dtype": "string", "_type": "Value"},
    "image_id": {"dtype": "int64", "_type": "Value"},
    "object_id": {"dtype": "int64", "_type": "Value"},
}


def write_hub_form(corpus: Path, folder: Path) -> dict[str, int]:
    """Write a corpus's cues as parquet files with a card. Files that lie there already are kept, so that a stopped writing goes on.

    Args:
        corpus: a folder that ``locus data build`` wrote.
        folder: where to.

    Returns:
        Cues by split; those whose picture cannot be used are left out.

    Raises:
        DataError: the corpus is damaged.
    """
    manifest = read_manifest(corpus)
    exif = manifest["settings"].get("exif", "skip")
    pictures = None if manifest["shards"] else Path(manifest["images"])
    shards = Shards(corpus, exif)
    schema = _SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": _FEATURES}})})
    counts = {}
    for split in ("train", "val"):
        entries = from_table(pq.read_table(corpus / "index" / f"{split}.parquet"), pictures or Path())
        parts = [entries[i : i + _ROWS] for i in range(0, len(entries), _ROWS)]
        counts[split] = 0
        for number, part in enumerate(track(parts, description=f"{split}, {len(entries):,} cues")):
            path = folder / "data" / f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                open_picture = partial(open_file, exif=exif) if pictures is not None else shards
                write(pa.Table.from_pylist(_rows(part, open_picture, shards if pictures is None else None), schema), path)
            counts[split] += pq.read_metadata(path).num_rows
    (folder / "README.md").write_text(_card(manifest, counts))
    return counts


def _rows(entries: Sequence[CueEntry], open_picture: Any, shards: Shards | None) -> list[dict[str, Any]]:
    rows = []
    for entry in entries:
        try:
            image = open_picture(entry)
        except PictureError:
            continue
        content = Path(entry.path).read_bytes() if shards is None else shards.content(entry)
        window = entry.window
        rows.append(
            {
                "image": {"bytes": content, "path": Path(entry.path).name},
                "crop": {"bytes": _png(crop_cue(image, window).image), "path": None},
                "box": list(window.box),
                "label": window.label,
                "size_bin": window.size_bin,
                "image_id": entry.image_id,
                "object_id": window.object_id,
            }
        )
    return rows


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _card(manifest: dict[str, Any], counts: dict[str, int]) -> str:
    """What the Hub shows, and where ``datasets`` finds the splits."""
    files = [{"split": {"val": "validation"}.get(split, split), "path": f"data/{split}-*"} for split in counts if counts[split]]
    head = {"task_categories": ["image-text-to-text"], "tags": ["locus-lightning", "visual-cue-search"],
            "configs": [{"config_name": "default", "data_files": files}]}  # fmt: skip
    facts = yaml.safe_dump({"settings": manifest["settings"], "counts": manifest.get("counts")}, sort_keys=False)
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# Cues for visual search\n\nEach row is a picture, a crop of it, and the crop's "
        "box: x1, y1, x2, y2 in pixels of the picture, the right and lower edges outside. Built by locus-lightning (`locus data build`); the "
        f"pictures' own licences apply.\n\n{', '.join(f'{count:,} {split}' for split, count in counts.items())} cues.\n\n```yaml\n{facts}```\n"
    )
