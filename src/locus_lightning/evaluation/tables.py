"""A dataset's own tables, row by row: parquet, tsv, jsonl, json."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from locus_lightning.errors import DataError
from locus_lightning.evaluation.base import Benchmark
from locus_lightning.files import lines_of

csv.field_size_limit(2**30)


def rows_of(benchmark: Benchmark, *suffixes: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every table of a folder with one of these suffixes: parquet, tsv, jsonl, json.

    Raises:
        DataError: there is none.
    """
    folder = benchmark.folder
    files = (
        sorted(path for path in folder.rglob("*") if path.suffix in suffixes) if folder.is_dir() else [folder] if folder.is_file() else []
    )
    if not files:
        raise DataError(f"{folder} holds no {' or '.join(suffixes)} file of {benchmark.name}; it is {benchmark.where}.")
    for path in files:
        try:
            yield from ((f"{path.name}, row {number}", row) for number, row in enumerate(_rows(path), 1))
        except (ValueError, OSError, UnicodeDecodeError) as cause:
            benchmark.note(path.name, cause)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches(64):
            yield from batch.to_pylist()
    elif path.suffix == ".tsv":
        with path.open(newline="") as file:
            yield from csv.DictReader(file, delimiter="\t")
    elif path.suffix == ".jsonl":
        for line in lines_of(path):
            if line.strip():
                yield json.loads(line)
    else:
        content = json.loads(path.read_text())
        if not isinstance(content, list):
            raise ValueError("not a list of rows")
        yield from content


def picture_bytes(value: Any) -> bytes:
    """A picture in a table: the hub's ``{"bytes": ...}``, plain bytes, or base64."""
    if isinstance(value, Mapping):
        value = value["bytes"]
    picture = value if isinstance(value, bytes) else base64.b64decode(value, validate=True)
    if not picture:
        raise ValueError("an empty picture")
    return picture
