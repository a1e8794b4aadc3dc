"""Ids of images to leave out of training: a list, or the files of RefCOCO, RefCOCO+ and RefCOCOg themselves."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from locus_lightning.errors import DataError
from locus_lightning.files import lines_of


def excluded_images(path: Path) -> set[int]:
    """Image ids of a file, or of all files of a folder.

    Text holds one id a line. A RefCOCO file is its pickle (``refs(unc).p``), the same rows as JSON or JSON lines, or the parquet files of the Hub's
    copies, whose picture names end in the id. Where rows have a split, those of ``train`` are not taken.

    Raises:
        DataError: the file cannot be read, or gives no id.
    """
    files = sorted(p for p in path.rglob("*") if p.suffix in _READERS) if path.is_dir() else [path]
    if not files:
        raise DataError(f"data.source exclude {path} holds no {', '.join(_READERS)} file.")
    ids_of_all: set[int] = set()
    for file in files:
        try:
            ids = set(_READERS.get(file.suffix, _plain)(file))
        except (OSError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as cause:
            raise DataError(
                f"data.source exclude {file} cannot be read ({type(cause).__name__}: {cause}); give one image id a line, or RefCOCO's own files."
            ) from cause
        if not ids:
            raise DataError(f"data.source exclude {file} gives no image id; give one image id a line, or RefCOCO's own files.")
        ids_of_all |= ids
    return ids_of_all


def _plain(path: Path) -> Iterable[int]:
    return [int(word) for line in lines_of(path) for word in line.split()]


def _pickled(path: Path) -> Iterable[int]:
    with path.open("rb") as file:
        return _of_rows(_PlainUnpickler(file, encoding="latin1").load())


def _json(path: Path) -> Iterable[int]:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    return _of_rows(content["images"] if isinstance(content, dict) else content)


def _json_lines(path: Path) -> Iterable[int]:
    return _of_rows([json.loads(line) for line in lines_of(path) if line.strip()])


def _parquet(path: Path) -> Iterable[int]:
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path)
    columns = [name for name in ("image_id", "file_name", "split") if name in table.schema_arrow.names]
    return _of_rows(table.read(columns=columns).to_pylist())


_READERS = {
    ".p": _pickled,
    ".pickle": _pickled,
    ".pkl": _pickled,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".txt": _plain,
}


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text and containers only: a pickle of anything else can run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and only numbers, text and lists are read")


def _of_rows(rows: Iterable[dict[str, Any]]) -> set[int]:
    """Ids of the rows that are not of the training split."""
    return {_id(row) for row in rows if row.get("split", "") != "train"}


def _id(row: dict[str, Any]) -> int:
    """``image_id``, COCO's own ``id``, or the number in a picture's name such as COCO_train2014_000000581857_1.jpg."""
    for name in ("image_id", "id"):
        if row.get(name) is not None:
            return int(row[name])
    number = re.search(r"(\d{12})", str(row["file_name"]))
    if number is None:
        raise ValueError(f"no image id in {row['file_name']!r}")
    return int(number.group(1))
