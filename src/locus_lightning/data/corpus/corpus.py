"""A built cue corpus: a parquet index with a manifest, pictures beside it or inside its shards. Read by :class:`CorpusCues`.

::

    corpus/manifest.json            what it was made from, counts, statistics, the hash of every file
    corpus/index/train.parquet      one row a cue: picture, window, object, size bin
    corpus/index/val.parquet
    corpus/shards/*.parquet         optional: the pictures' own bytes, one row a picture, for object stores
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from locus_lightning.cue_samplers.base import crop_cue
from locus_lightning.cue_samplers.text_cue import cue_in_words, read_expressions
from locus_lightning.data.coco.index import CueEntry, CueSet, open_file
from locus_lightning.data.images import Exif, open_rgb
from locus_lightning.data.source import CueDataset, CueSource, Split
from locus_lightning.errors import ConfigError, DataError, PictureError
from locus_lightning.types import CueWindow

FORMAT = 1
MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
        ("file_name", pa.string()),
        ("image_id", pa.int64()),
        *((name, pa.int32()) for name in ("width", "height", "x1", "y1", "x2", "y2")),
        *((f"object_{name}", pa.float64()) for name in ("x1", "y1", "x2", "y2")),
        ("object_id", pa.int64()),
        ("label", pa.string()),
        ("size_bin", pa.string()),
        ("scale", pa.float64()),
    ]
)
"""Columns of the index; boxes in original pixels, the window integer, half-open."""
FACTS = "facts"
"""A further column, JSON, where a sampler told any."""


def to_table(entries: Sequence[CueEntry], folder: Path) -> pa.Table:
    """Entries as rows; their paths lie under ``folder`` and become relative to it."""
    nowhere, above = (float("nan"),) * 4, len(str(folder)) + 1
    rows = [
        (e.path[above:], e.image_id, *e.size, *w.box, *(w.object_box or nowhere), w.object_id, w.label, w.size_bin, w.scale)
        for e in entries
        for w in (e.window,)
    ]
    columns = zip(*rows, strict=True) if rows else ([] for _ in SCHEMA)
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    if any(entry.window.facts for entry in entries):  # a column of its own, so that corpora without them stay as they were
        table = table.append_column(
            FACTS, pa.array([json.dumps(dict(entry.window.facts), sort_keys=True) for entry in entries], pa.string())
        )
    return table


def from_table(table: pa.Table, folder: Path) -> list[CueEntry]:
    """The other way."""
    entries, above = [], str(folder / "x")[:-1]
    facts = map(json.loads, table.column(FACTS).to_pylist()) if FACTS in table.column_names else itertools.repeat({})
    columns = (table.column(field.name).to_pylist() for field in SCHEMA)
    for (name, image_id, w, h, x1, y1, x2, y2, *rest), told in zip(zip(*columns, strict=True), facts, strict=False):
        a, b, c, d, object_id, label, size_bin, scale = rest
        own = None if a != a else (a, b, c, d)
        window = CueWindow((x1, y1, x2, y2), size_bin, scale, own, label, object_id, told)
        entries.append(CueEntry(above + name, (w, h), image_id, window))
    return entries


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class CorpusCues(CueSource):
    """Cues of a corpus that ``locus data build`` wrote. Refused where a file does not match the manifest.

    Args:
        folder: The folder of the corpus.
        images: The folder of the pictures. Null is the shards where there are any, else the folder that the corpus was built from.
        expressions: A file of words that replace the crops, from ``locus data text-cues``. Cues without words are left out.
    """

    def __init__(self, folder: str, images: str | None = None, expressions: str | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self.images = Path(images).expanduser() if images else None
        self.expressions = Path(expressions).expanduser() if expressions else None
        self.manifest: dict[str, Any] = {}

    def check(self) -> None:
        """Hold the files against the manifest."""
        if not self.manifest:
            self.manifest = read_manifest(self.folder)
            folder = self._pictures()
            if folder is not None and not folder.is_dir():
                raise DataError(f"the picture folder {folder} of the corpus {self.folder} does not exist; set data.source images.")

    def dataset(self, split: Split, seed: int) -> CueDataset:
        """The split as it was built; ``seed`` changes nothing."""
        self.check()
        folder = self._pictures()
        entries = from_table(pq.read_table(self.folder / "index" / f"{split}.parquet"), folder or Path())
        make = crop_cue
        if self.expressions is not None:
            expressions = read_expressions(self.expressions)
            words = ((entry, expressions.of(entry.image_id, entry.window.object_id)) for entry in entries)
            entries = [replace(entry, window=replace(entry.window, label=text)) for entry, text in words if text is not None]
            make = cue_in_words
        if not entries:
            raise DataError(f"the corpus {self.folder} has no {split} cues" + (" with words" if self.expressions else "") + ".")
        exif: Exif = self.manifest["settings"].get("exif", "skip")
        return CueSet(entries, make, partial(open_file, exif=exif) if folder is not None else Shards(self.folder, exif))

    def origin(self) -> dict[str, Any]:
        """See :meth:`CueSource.origin`."""
        self.check()
        sources, settings = self.manifest.get("sources", {}), self.manifest.get("settings", {})
        return {"annotations": [str(source["file"]) for source in sources.values()], "exclude": settings.get("exclude") or ""}

    def summary(self) -> dict[str, object]:
        """Counts and hashes from the manifest."""
        return {"corpus": str(self.folder), "counts": self.manifest.get("counts"), "files": self.manifest.get("files")}

    def _pictures(self) -> Path | None:
        """The folder pictures are read from, or None for the shards."""
        if self.images is not None:
            return self.images
        return None if self.manifest["shards"] else Path(self.manifest["images"])


def read_manifest(folder: Path, *, deep: bool = False) -> dict[str, Any]:
    """The manifest of a corpus, its files held against it: size of every file, hash of the index (``deep``: of all).

    Raises:
        DataError: no corpus, or a file is missing, half-written or changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        unfinished = ", whose building is not finished: run the same `locus data build` again" if (folder / "parts").is_dir() else ""
        raise DataError(f"{folder} holds no {MANIFEST}{unfinished or '; give a folder that `locus data build` wrote'}.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        files = dict(manifest["files"])
        known = manifest["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as cause:
        raise DataError(f"{path} is not a corpus manifest ({cause}); build the corpus again.") from cause
    if not known:
        raise DataError(f"{path} is of format {manifest['format']} and this version reads format {FORMAT}; build the corpus again.")
    for name, facts in files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != facts["bytes"] or ((deep or name.startswith("index/")) and digest(file) != facts["sha256"]):
            state = "is missing" if size is None else "is half-written" if size < facts["bytes"] else "was changed"
            raise DataError(f"{file} {state}: it does not match {MANIFEST}; build the corpus again.")
    return manifest


class Shards:
    """Opens pictures from a corpus's shards; each process keeps its last row group.

    Args:
        folder: of the corpus.
        exif: what the corpus was built with.
    """

    def __init__(self, folder: Path, exif: Exif = "skip") -> None:
        self.folder, self.exif = folder, exif
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._held: tuple[tuple[Path, int], list[bytes]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "exif": self.exif, "_places": {}, "_held": None}

    def __call__(self, entry: CueEntry) -> Image.Image:
        """The picture of an entry.

        Raises:
            PictureError: it is in no shard, or cannot be used.
        """
        return open_rgb(self.content(entry), entry.size, self.exif)

    def content(self, entry: CueEntry) -> bytes:
        """The file of an entry's picture, as it was.

        Raises:
            PictureError: it is in no shard.
        """
        if not self._places:
            for path in sorted((self.folder / "shards").glob("*.parquet")):
                file = pq.ParquetFile(path)
                for group in range(file.num_row_groups):
                    names = file.read_row_group(group, columns=["file_name"]).column(0).to_pylist()
                    self._places |= {name: (path, group, row) for row, name in enumerate(names)}
        if entry.path not in self._places:
            raise PictureError("the picture is in no shard")
        path, group, row = self._places[entry.path]
        if self._held is None or self._held[0] != (path, group):
            self._held = (path, group), pq.ParquetFile(path).read_row_group(group, columns=["image"]).column(0).to_pylist()
        return self._held[1][row]


def parse_mix(text: str) -> dict[str, float]:
    """``tiny=0.7,small=0.3`` as a mapping.

    Raises:
        ConfigError: it is not of this form.
    """
    try:
        return {name.strip(): float(share) for name, share in (pair.split("=") for pair in text.split(","))}
    except ValueError:
        raise ConfigError(f"--mix is {text!r}; write it as tiny=0.7,small=0.3.") from None
