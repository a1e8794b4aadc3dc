"""Configuration files and options before the parser reads them: short forms are written out, and plugin names are made known.

Short forms (the long ones stay valid)::

    checkpoint: locus-tiny              # model.backbone.checkpoint
    model:                              # LocusModule where no class is named
      backbone:                         # AutoBackbone where no class is named
        checkpoint: locus-tiny
        max_pixels: 401408              # a setting of the family
"""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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


def prepare(arguments: Sequence[str]) -> list[str]:
    """Arguments with their short forms written out; plugins that files and options name by class name are imported.

    Raises:
        ConfigError: a configuration file is missing or is not YAML.
        PluginError: a name is unknown, claimed twice, or fails to import.
    """
    for key, value in _options(arguments):
        if key in ("config", "c"):
            _import_named("", write_out(read_config(Path(value).expanduser())))
        else:
            _import_option(key, value)
    prepared, i = [], 0
    while i < len(arguments):
        argument = arguments[i]
        key, equals, value = argument.partition("=")
        if key in ("--config", "-c"):
            value = value if equals else arguments[i + 1]
            i += 0 if equals else 1
            prepared.append(f"--config={_written_out(Path(value).expanduser())}")
        elif key == "--checkpoint":
            value = value if equals else arguments[i + 1]
            i += 0 if equals else 1
            prepared.append(f"--model.init_args.backbone.init_args.checkpoint={value}")
        else:
            prepared.append(argument)
        i += 1
    return prepared


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
    from locus_lightning.backbones.hf import HFBackbone

    common = {*inspect.signature(HFBackbone.__init__).parameters, "family"}
    own = {key: value for key, value in settings.items() if key not in common}
    rest = {key: value for key, value in settings.items() if key in common}
    return {**rest, "family": {**(rest.get("family") or {}), **own}} if own else rest


def _written_out(path: Path) -> Path:
    """The file itself where it has no short forms, else a full copy of it."""
    content = read_config(path)
    full = write_out(content)
    if full == content:
        return path
    folder = Path(tempfile.mkdtemp(prefix="locus-"))
    copy = folder / path.name
    copy.write_text(yaml.safe_dump(full, sort_keys=False))
    return copy


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for i, argument in enumerate(arguments):
        if argument.startswith("-") and "=" in argument:
            key, _, value = argument.partition("=")
            yield key.lstrip("-"), value
        elif argument.startswith("-") and i + 1 < len(arguments):
            yield argument.lstrip("-"), arguments[i + 1]


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
