"""Classes in a file of the user's, before they are a package: ``class_path: rewards.py:LengthReward``."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from locus_lightning.errors import PluginError

_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


_FOLDERS = "LOCUS_CLASS_FOLDERS"
"""The environment variable by which processes for other ranks learn where such files lie: their arguments have dotted paths already."""


def look_through_folders() -> None:
    """Let modules be imported from the folders of the user's class files."""
    sys.path += [folder for folder in os.environ.get(_FOLDERS, "").split(os.pathsep) if folder and folder not in sys.path]


def importable(value: Any, folder: Path) -> Any:
    """A value with every ``FILE.py:NAME`` in it as a dotted path that can be imported.

    Args:
        value: of a configuration.
        folder: that files are named from, where they are not found from the working directory.

    Raises:
        PluginError: the file is not there, cannot be imported, or has no such class.
    """
    if isinstance(value, dict):
        return {key: importable(inner, folder) for key, inner in value.items()}
    if isinstance(value, list):
        return [importable(inner, folder) for inner in value]
    match = _FILE.fullmatch(value) if isinstance(value, str) else None
    return _dotted(match["file"], match["name"], folder) if match else value


def _dotted(file: str, name: str, folder: Path) -> str:
    path = Path(file).expanduser()
    path = (path if path.is_file() else folder / path).resolve()
    what = f"class_path {file}:{name}"
    if not path.is_file():
        raise PluginError(f"{what}: there is no file {file}, neither here nor beside the configuration.")
    if not path.stem.isidentifier():
        raise PluginError(f"{what}: {path.stem!r} cannot be a module's name; rename the file.")
    module = _imported(path, what)
    if not isinstance(getattr(module, name, None), type):
        classes = [key for key, one in vars(module).items() if isinstance(one, type) and one.__module__ == module.__name__]
        raise PluginError(f"{what}: the file has no class {name}; it has {', '.join(classes) or 'none'}.")
    return f"{path.stem}.{name}"


def _imported(path: Path, what: str) -> Any:
    """The file as a module of its own name; processes that are started for other ranks find it too.

    Its folder is looked through last, so that no other file in it can stand before a library of that name.
    """
    known = sys.modules.get(path.stem)
    if known is None:
        os.environ[_FOLDERS] = os.pathsep.join([*filter(None, os.environ.get(_FOLDERS, "").split(os.pathsep)), str(path.parent)])
        look_through_folders()
        try:
            known = importlib.import_module(path.stem)
        except Exception as cause:  # code of the user's fails in its own ways
            raise PluginError(f"{what}: the file cannot be imported: {type(cause).__name__}: {cause}") from cause
    if Path(getattr(known, "__file__", None) or "").resolve() != path:
        raise PluginError(f"{what}: another module is called {path.stem!r} ({getattr(known, '__file__', 'built in')}); rename the file.")
    return known
