"""Where configuration files are: here, or among those that come with the package; and files that build on another one.

::

    base: tiny.yaml                     # beside this file, or one that comes with the package
    trainer: {max_steps: 4000}          # what is different
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from locus_lightning.errors import ConfigError
from locus_lightning.training.config_form import classes_of, read_config, write_out

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = next(
    folder for folder in (_PACKAGE / "configs", _PACKAGE.parents[1] / "configs") if folder.is_dir() or folder.parent == _PACKAGE.parents[1]
)
"""The folder of the configurations that come with the package: inside it where it was installed, beside ``src`` in a source checkout."""


def shipped() -> dict[str, Path]:
    """Name, such as ``llava.yaml`` or ``studies/paper_small.yaml`` -> file."""
    return {path.relative_to(SHIPPED).as_posix(): path for path in sorted(SHIPPED.rglob("*.yaml"))}


def locate(path: Path) -> Path:
    """The file itself; one that is not here but comes with the package is taken from there, and that is said.

    Raises:
        ConfigError: it is in neither place.
    """
    path = path.expanduser()
    if path.is_file():
        return path
    name = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    own = SHIPPED / name
    if path.is_absolute() or ".." in path.parts or not own.is_file():
        raise ConfigError(f"the configuration file {path} does not exist (locus configs lists those that come with the package).")
    log.info("%s is not here; it is taken from the package (locus configs copy %s writes it here, to edit)", path, name.as_posix())
    return own


def read_full(path: Path, model_class: str | None = None, backbone_class: str | None = None) -> dict[str, Any]:
    """A configuration with its short forms written out and what it builds on put under it.

    Args:
        path: of the file, which is there (:func:`locate`).
        model_class: see :func:`~locus_lightning.training.config_form.write_out`.
        backbone_class: likewise.

    Raises:
        ConfigError: a file is missing or is no configuration; files build on each other in a circle.
    """
    return _read(path, model_class, backbone_class, ())


def _read(path: Path, model_class: str | None, backbone_class: str | None, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ConfigError(f"{path}: base goes round in a circle ({' -> '.join(p.name for p in (*above, path))}).")
    content = read_config(path)
    base = content.pop("base", None)
    for key, value in content.items():  # parts in files of their own lie beside this one
        if isinstance(value, str) and (path.parent / value).is_file():
            content[key] = str((path.parent / value).resolve())
    if base is None:
        return write_out(content, model_class, backbone_class)
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base is {base!r}; it is the name of a configuration file.")
    beside = path.parent / base
    below = _read(beside if beside.is_file() else locate(Path(base)), model_class, backbone_class, (*above, path.resolve()))
    return merged(below, write_out(content, *classes_of(below)))


def merged(below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping with another's values put over it, key by key. A list replaces a list, and settings of a class replace those of another class."""
    result = {key: copy.deepcopy(value) for key, value in below.items()}
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        other_class = both and value.get("class_path") is not None and value["class_path"] != old.get("class_path")  # type: ignore[union-attr]
        result[key] = merged(old, value) if both and not other_class else copy.deepcopy(value)  # type: ignore[arg-type]
    return result
