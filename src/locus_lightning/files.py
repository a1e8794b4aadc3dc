"""Files that others write and read: lines of text, whole writes, and pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file, without their ends. A byte order mark is dropped, and only line feeds and carriage returns end a line:
    JSON may hold U+2028 or U+0085, at which ``str.splitlines`` would cut a record in two.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            yield line.rstrip("\n")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to. It becomes ``path`` in the end, so that a file is complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.writing")
    yield beside
    os.replace(beside, path)


def render(template: str, **content: Any) -> str:
    """A page from a template of the package. Everything that models and files say is escaped."""
    from jinja2 import Environment, PackageLoader

    return Environment(loader=PackageLoader("locus_lightning"), autoescape=True).get_template(template).render(**content)
