"""The configuration file's model section: short forms, written out. The long forms stay valid.

::

    checkpoint: locus-tiny              # model.init_args.backbone.init_args.checkpoint
    model:                              # LocusModule where no class is named
      group_size: 8
      backbone:                         # AutoBackbone where no class is named
        lora: {rank: 64}
        max_pixels: 401408              # a setting of the family
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from locus_lightning.errors import ConfigError


def require_file(path: Path) -> None:
    """Refuse a configuration file that is not there.

    Raises:
        ConfigError: names it.
    """
    if not path.is_file():
        raise ConfigError(f"the configuration file {path} does not exist.")


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file's content.

    Raises:
        ConfigError: it is missing, or is not YAML, or holds no mapping.
    """
    require_file(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as cause:
        position = getattr(cause, "problem_mark", None)
        where = f" (line {position.line + 1})" if position else ""
        raise ConfigError(f"{path}{where} is not valid YAML: {getattr(cause, 'problem', cause)}.") from cause
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not a mapping with model, data and trainer.")
    return content


def write_out(content: Mapping[str, Any], model_class: str | None = None, backbone_class: str | None = None) -> dict[str, Any]:
    """A configuration with its short forms written out.

    Args:
        content: of the file.
        model_class: the model's class where an earlier file or an option names one; None: LocusModule.
        backbone_class: likewise the backbone's; None: AutoBackbone.

    Raises:
        ConfigError: ``checkpoint`` stands in two places, or beside a model that is another file.
    """
    full = dict(content)
    checkpoint, model = full.pop("checkpoint", None), full.get("model")
    if checkpoint is not None and not isinstance(model, Mapping | None):
        raise ConfigError(f"the configuration has checkpoint: {checkpoint} beside model: {model}; state the checkpoint in that file.")
    if checkpoint is not None and model is None:
        model = {}
    if not isinstance(model, Mapping):
        return full
    arguments = dict(model.get("init_args") or {}) if "class_path" in model or "init_args" in model else dict(model)
    backbone = arguments.get("backbone", {} if checkpoint is not None else None)
    if isinstance(backbone, Mapping):
        arguments["backbone"] = _backbone(backbone, checkpoint, backbone_class)
    full["model"] = {"class_path": model.get("class_path") or model_class or "LocusModule", "init_args": arguments}
    return full


def _backbone(stated: Mapping[str, Any], checkpoint: str | None, known_class: str | None) -> dict[str, Any]:
    long = "class_path" in stated or "init_args" in stated
    kind = stated.get("class_path") or known_class or "AutoBackbone"
    inner = dict(stated.get("init_args") or {}) if long else dict(stated)
    if not long and kind == "AutoBackbone":
        inner = _with_family(inner)
    if checkpoint is not None:
        if inner.get("checkpoint", checkpoint) != checkpoint:
            raise ConfigError(f"the configuration names two checkpoints, {checkpoint} and {inner['checkpoint']}; keep one of them.")
        inner["checkpoint"] = checkpoint
    return {**stated, "class_path": kind, "init_args": inner} if long else {"class_path": kind, "init_args": inner}


def classes_of(full: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The model's and the backbone's class path of a written-out configuration."""
    model = full.get("model")
    if not isinstance(model, Mapping):
        return None, None
    backbone = (model.get("init_args") or {}).get("backbone")
    return model.get("class_path"), backbone.get("class_path") if isinstance(backbone, Mapping) else None


def _with_family(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a backbone without a class: those that not every backbone has belong to its family."""
    own = {key: value for key, value in settings.items() if key not in common_settings()}
    rest = {key: value for key, value in settings.items() if key in common_settings()}
    return {**rest, "family": {**(rest.get("family") or {}), **own}} if own else rest


@cache
def common_settings() -> frozenset[str]:
    """Settings that every backbone has."""
    from locus_lightning.backbones.hf import HFBackbone

    return frozenset({*inspect.signature(HFBackbone.__init__).parameters, "family", "class_path", "init_args"})
