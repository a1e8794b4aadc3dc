"""Plugin names in YAML files and options, made known to the parser before it reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from locus_lightning import plugins
from locus_lightning.errors import ConfigError

_KIND_OF_KEY: dict[str, plugins.Kind] = {"backbone": "backbones", "rewards": "rewards", "cue_sampler": "cue_samplers"}


def import_named_plugins(arguments: Sequence[str]) -> None:
    """Import the plugins that YAML files and options name by bare class name, so that the parser knows them.

    Raises:
        ConfigError: a configuration file is missing or is not YAML.
        PluginError: a name is unknown, claimed twice, or fails to import.
    """
    for path in _config_files(arguments):
        if not path.is_file():
            raise ConfigError(f"the configuration file {path} does not exist.")
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError as cause:
            mark = getattr(cause, "problem_mark", None)
            where = f" (line {mark.line + 1})" if mark else ""
            raise ConfigError(f"{path}{where} is not valid YAML: {getattr(cause, 'problem', cause)}.") from cause
        for kind, name in _names("", content):
            plugins.load(kind, name)
    for key, value in _options(arguments):
        found = _KIND_OF_KEY.get(key.rstrip("+").rsplit(".", 1)[-1])
        if found and re.fullmatch(r"[A-Za-z_]\w*", value) and value not in ("null", "None"):
            plugins.load(found, value)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for i, argument in enumerate(arguments):
        if argument.startswith("-") and "=" in argument:
            key, _, value = argument.partition("=")
            yield key.lstrip("-"), value
        elif argument.startswith("-") and i + 1 < len(arguments):
            yield argument.lstrip("-"), arguments[i + 1]


def _config_files(arguments: Sequence[str]) -> list[Path]:
    return [Path(value).expanduser() for key, value in _options(arguments) if key in ("config", "c")]


def _names(key: str, value: Any) -> Iterator[tuple[plugins.Kind, str]]:
    """(kind, bare class name) wherever a YAML names a plugin."""
    kind = _KIND_OF_KEY.get(key)
    if isinstance(value, list):
        for item in value:
            yield from _names(key, item)
    elif isinstance(value, dict):
        if kind and isinstance(value.get("class_path"), str) and "." not in value["class_path"]:
            yield kind, value["class_path"]
        for inner, content in value.items():
            yield from _names(str(inner), content)
    elif kind and isinstance(value, str) and "." not in value:
        yield kind, value
