"""Writing a corpus: whole files or none, in parallel, with progress shown."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from locus_lightning.errors import DataError
from locus_lightning.files import whole


def in_parallel(work: Callable[[Any], Path], jobs: Sequence[Any], workers: int, title: str) -> Iterator[Path]:
    """Results in the order of the jobs, with progress shown."""
    if workers <= 1 or len(jobs) < 2:
        yield from track(map(work, jobs), description=title, total=len(jobs))
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        yield from track(pool.map(work, jobs), description=title, total=len(jobs))


def write(table: pa.Table, path: Path) -> None:
    """Write a table, whole or not at all."""
    with whole(path) as beside:
        pq.write_table(table, beside)


@contextmanager
def disk_full_is_a_sentence(folder: Path) -> Iterator[None]:
    """Turn a disk that is full or not writable into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise
        raise DataError(
            f"{folder} cannot be written to: {os.strerror(error.errno or 0)}. Make room or choose another --out; "
            "the same command then goes on where it was."
        ) from error
