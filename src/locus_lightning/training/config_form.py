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
    own = {key: value for key, value in settings.items() if key not in common_settings()}
    rest = {key: value for key, value in settings.items() if key in common_settings()}
    return {**rest, "family": {**(rest.get("family") or {}), **own}} if own else rest


@cache
def common_settings() -> frozenset[str]:
    """Settings that every backbone has."""
    from locus_lightning.backbones.hf import HFBackbone

    return frozenset({*inspect.signature(HFBackbone.__init__).parameters, "family", "class_path", "init_args"})
