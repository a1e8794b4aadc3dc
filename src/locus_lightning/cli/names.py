"""Configuration files and options before the parser reads them: short forms are written out, and plugin names are made known.

Short forms (the long ones stay valid)::

    checkpoint: locus-tiny              # model.backbone.checkpoint
    model:                              # LocusModule where no class is named
      backbone:                         # AutoBackbone where no class is named
        checkpoint: locus-tiny
        max_pixels: 401408              # a setting of the family
"""

from __future__ import annotations

import atexit
import inspect
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from locus_lightning import plugins
from locus_lightning.errors import ConfigError

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
        elif auto and setting and setting[1] not in _common_settings() and value is not None:
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


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file's content.

    Raises:
        ConfigError: it is missing, or is not YAML, or holds no mapping.
    """
    if not path.is_file():
        raise ConfigError(f"the configuration file {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"{path}{where} is not valid YAML: {getattr(cause, 'problem', cause)}.") from cause
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not a mapping with model, data and trainer.")
    return content


def write_out(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its short forms written out.

    Raises:
        ConfigError: ``checkpoint`` stands in two places.
    """
    full = dict(content)
    checkpoint = full.pop("checkpoint", None)
    model = full.get("model")
    if checkpoint is not None:
        model = {} if model is None else model
    if not isinstance(model, Mapping):
        return full
    if "class_path" not in model:
        model = {"class_path": "LocusModule", "init_args": dict(model)}
    arguments = dict(model.get("init_args") or {})
    backbone = arguments.get("backbone", {} if checkpoint is not None else None)
    if isinstance(backbone, Mapping):
        if "class_path" not in backbone:
            backbone = {"class_path": "AutoBackbone", "init_args": _with_family(backbone)}
        inner = dict(backbone.get("init_args") or {})
        if checkpoint is not None:
            if inner.get("checkpoint", checkpoint) != checkpoint:
                raise ConfigError(f"the configuration names two checkpoints, {checkpoint} and {inner['checkpoint']}; keep one of them.")
            inner["checkpoint"] = checkpoint
        arguments["backbone"] = {**backbone, "init_args": inner}
    full["model"] = {**model, "init_args": arguments}
    return full


def _with_family(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a backbone without a class: those that not every backbone has belong to its family."""
    own = {key: value for key, value in settings.items() if key not in _common_settings()}
    rest = {key: value for key, value in settings.items() if key in _common_settings()}
    return {**rest, "family": {**(rest.get("family") or {}), **own}} if own else rest


@cache
def _common_settings() -> frozenset[str]:
    """Settings that every backbone has."""
    from locus_lightning.backbones.hf import HFBackbone

    return frozenset({*inspect.signature(HFBackbone.__init__).parameters, "family", "class_path", "init_args"})


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
