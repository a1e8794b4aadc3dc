"""Options and files of the training commands before the parser reads them: short forms are written out, plugin names are made known."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from locus_lightning import plugins
from locus_lightning.cli.class_files import importable, look_through_folders
from locus_lightning.errors import ConfigError
from locus_lightning.training.config_files import locate, read_full
from locus_lightning.training.config_form import classes_of, common_settings, read_config

_KIND_OF_KEY: dict[str, plugins.Kind] = {
    "backbone": "backbones",
    "rewards": "rewards",
    "cue_sampler": "cue_samplers",
    "task": "tasks",
    "tasks": "tasks",
}
_BARE = re.compile(r"[A-Za-z_]\w*")
_CLASS = re.compile(r"[A-Za-z_][\w.]*")
_OPTION_OF_PART = re.compile(r"--model\.(?:init_args\.)?(backbone|task|objective|rollout)\.((?:\w+\.)*\w+)")
"""A setting of a class inside the module, or of a record in it. jsonargparse 4.53 makes the word "None" of a null there, so that a null is handed over with what is
around it."""
_FAMILY_OPTION = re.compile(r"--model\.(?:init_args\.)?backbone\.(?:init_args\.)?(\w+)")


def prepare(arguments: Sequence[str]) -> list[str]:
    """Arguments with their short forms written out; plugins that files and options name by class name are imported.

    Of several files the later ones may change single settings: where they name no class, that of the earlier ones stays.

    Raises:
        ConfigError: a configuration file is missing or is not YAML.
        PluginError: a name is unknown, claimed twice, or fails to import.
    """
    look_through_folders()
    pairs = [(key, _importable_text(value)) for key, value in _pairs(arguments)]
    model, backbone = _classes_by_option(pairs)
    files: list[tuple[Path, dict[str, Any]]] = []
    for key, value in pairs:
        if key in ("--config", "-c") and value is not None:
            path = locate(Path(value))
            full = importable(read_full(path, model, backbone), path.parent)
            own_model, own_backbone = classes_of(full)
            model, backbone = own_model or model, own_backbone or backbone
            _import_named("", full)
            files.append((path, full))
    prepared: list[str] = []
    family: dict[str, Any] = {}
    for key, value in pairs:
        setting = _FAMILY_OPTION.fullmatch(key)
        if value is None or key in ("--config", "-c"):
            prepared.append(key)  # a file is put in below, when the settings of the family are known
        elif key == "--checkpoint":
            prepared.append(f"--model.init_args.backbone.init_args.checkpoint={value}")
        elif setting and str(backbone).rsplit(".", 1)[-1] == "AutoBackbone" and setting[1] not in common_settings():
            family[setting[1]] = _yaml_value(key, value)
        elif (part := _OPTION_OF_PART.fullmatch(key)) and value in ("null", "~"):
            value_of_part: Any = None
            for name in reversed(part[2].replace("init_args.", "").split(".")):
                value_of_part = {name: value_of_part}
            prepared.append(f"--model.init_args={json.dumps({part[1]: {'init_args': value_of_part}})}")
        else:
            _import_option(key.lstrip("-"), value)
            prepared.append(f"{key}={value}")
    ready = iter([_on_disk(path, full, family) for path, full in files])
    return [f"--config={next(ready)}" if item in ("--config", "-c") else item for item in prepared]


def _importable_text(text: str | None) -> str | None:
    """An option's value with the classes in it that are named by file as dotted paths."""
    if text is None or ".py:" not in text:
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the parser says what is wrong with it
    done = importable(value, Path())
    return text if done == value else done if isinstance(done, str) else json.dumps(done)


def _classes_by_option(pairs: Sequence[tuple[str, str | None]]) -> tuple[str | None, str | None]:
    """The model's and the backbone's class where options name them."""
    named = {key.removeprefix("--").replace("init_args.", "").removesuffix(".class_path"): value for key, value in pairs if value}
    classes = (named.get("model"), named.get("model.backbone"))
    model, backbone = (value if value and _CLASS.fullmatch(value) else None for value in classes)
    return model, backbone


def _yaml_value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as cause:
        raise ConfigError(f"{key} is {text!r}, which is not a YAML value ({getattr(cause, 'problem', cause)}).") from cause


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


def _on_disk(path: Path, full: dict[str, Any], family: Mapping[str, Any]) -> Path:
    """The file itself where nothing was written out, else a full copy of it that lasts as long as this process."""
    if family and str(classes_of(full)[1]).rsplit(".", 1)[-1] == "AutoBackbone":
        backbone = full["model"]["init_args"]["backbone"]["init_args"]
        backbone["family"] = {**(backbone.get("family") or {}), **family}
    if full == read_config(path):
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
