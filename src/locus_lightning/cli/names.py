"""Options and files of the training commands before the parser reads them: short forms are written out, plugin names are made known."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from locus_lightning import plugins
from locus_lightning.training.config_form import common_settings, read_config, write_out

_KIND_OF_KEY: dict[str, plugins.Kind] = {
    "backbone": "backbones",
    "rewards": "rewards",
    "cue_sampler": "cue_samplers",
    "task": "tasks",
    "tasks": "tasks",
}
_BARE = re.compile(r"[A-Za-z_]\w*")
_FAMILY_OPTION = re.compile(r"--model\.(?:init_args\.)?backbone\.(?:init_args\.)?(\w+)")


def prepare(arguments: Sequence[str]) -> list[str]:
    """Arguments with their short forms written out; plugins that files and options name by class name are imported.

    Raises:
        ConfigError: a configuration file is missing or is not YAML.
        PluginError: a name is unknown, claimed twice, or fails to import.
    """
    pairs = list(_pairs(arguments))
    configs = [Path(value).expanduser() for key, value in pairs if key in ("--config", "-c") and value is not None]
    auto = any(_backbone_class(write_out(read_config(path))) == "AutoBackbone" for path in configs)
    prepared: list[str] = []
    family: dict[str, Any] = {}
    for key, value in pairs:
        setting = _FAMILY_OPTION.fullmatch(key)
        if key in ("--config", "-c"):
            _import_named("", write_out(read_config(Path(str(value)).expanduser())))
            prepared.append(key)  # written out below, when the settings of the family are known
        elif key == "--checkpoint" and value is not None:
            prepared.append(f"--model.init_args.backbone.init_args.checkpoint={value}")
        elif auto and setting and setting[1] not in common_settings() and value is not None:
            family[setting[1]] = yaml.safe_load(value)
        else:
            if value is not None:
                _import_option(key.lstrip("-"), value)
            prepared.append(key if value is None else f"{key}={value}")
    files = iter(configs)
    return [f"--config={_written_out(next(files), family)}" if item in ("--config", "-c") else item for item in prepared]


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(option, value) of every argument; positional arguments, and options without a value, have None."""
    i = 0
    while i < len(arguments):
        argument = arguments[i]
        if argument.startswith("-") and "=" in argument:
            key, _, value = argument.partition("=")
            yield key, value
        elif (argument.startswith("--") and i + 1 < len(arguments) and not arguments[i + 1].startswith("--")) or (
            argument == "-c" and i + 1 < len(arguments)
        ):
            yield argument, arguments[i + 1]
            i += 1
        else:
            yield argument, None
        i += 1


def _backbone_class(content: Mapping[str, Any]) -> str:
    """The bare class name of a written-out configuration's backbone, or nothing."""
    model = content.get("model")
    backbone = (model.get("init_args") or {}).get("backbone") if isinstance(model, Mapping) else None
    return str(backbone.get("class_path", "")).rsplit(".", 1)[-1] if isinstance(backbone, Mapping) else ""


def _written_out(path: Path, family: Mapping[str, Any]) -> Path:
    """The file itself where nothing is to be written out, else a full copy of it that lasts as long as this process."""
    content = read_config(path)
    full = write_out(content)
    if family and _backbone_class(full) == "AutoBackbone":
        backbone = full["model"]["init_args"]["backbone"]["init_args"]
        backbone["family"] = {**(backbone.get("family") or {}), **family}
    if full == content:
        return path
    folder = tempfile.mkdtemp(prefix="locus-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = Path(folder) / path.name
    copy.write_text(yaml.safe_dump(full, sort_keys=False))
    return copy


def _import_option(key: str, text: str) -> None:
    """Import what an option names: a bare class name, or names inside a JSON or YAML value."""
    last = next((part for part in reversed(key.rstrip("+").split(".")) if part != "init_args"), "")
    if last == "class_path":
        last = next((part for part in reversed(key.split(".")[:-1]) if part != "init_args"), "")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return  # the parser says what is wrong with it
    _import_named(last, value)


def _import_named(key: str, value: Any) -> None:
    """Import every plugin that a value names by bare class name."""
    kind = _KIND_OF_KEY.get(key)
    if isinstance(value, list):
        for item in value:
            _import_named(key, item)
    elif isinstance(value, dict):
        named = value.get("class_path")
        if kind and isinstance(named, str) and _BARE.fullmatch(named):
            plugins.load(kind, named)
        for inner, content in value.items():
            if inner != "class_path":
                _import_named(str(inner), content)
    elif kind and isinstance(value, str) and _BARE.fullmatch(value):
        plugins.load(kind, value)
