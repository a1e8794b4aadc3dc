"""Finding plugins by class name: built-ins from a table, others from entry points.

Four kinds and no more: ``rewards``, ``cue_samplers``, ``tasks``, ``backbones``. A package offers a plugin with::

    [project.entry-points."locus_lightning.rewards"]
    GIoUReward = "my_package:GIoUReward"

The name is the class name, which is what a YAML says: ``class_path: GIoUReward``. Names are read from
metadata; code is imported only when a plugin is named (or checked). This module imports neither torch nor lightning.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, get_args

from locus_lightning.errors import PluginError

Kind = Literal["rewards", "cue_samplers", "tasks", "backbones"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_BUILT_IN: dict[Kind, dict[str, str]] = {
    "rewards": {
        "IoUReward": "locus_lightning.rewards.iou:IoUReward",
        "FormatReward": "locus_lightning.rewards.format:FormatReward",
        "AnswerReward": "locus_lightning.rewards.answer:AnswerReward",
    },
    "cue_samplers": {
        "ObjectCues": "locus_lightning.cue_samplers.objects:ObjectCues",
        "TextCues": "locus_lightning.cue_samplers.text_cue:TextCues",
        "RandomCropCues": "locus_lightning.cue_samplers.random_crop:RandomCropCues",
    },
    "tasks": {
        "CueSearch": "locus_lightning.tasks.cue_search:CueSearch",
        "MultiCue": "locus_lightning.tasks.multi_cue:MultiCue",
        "TaskMixture": "locus_lightning.tasks.mixture:TaskMixture",
    },
    "backbones": {
        "AutoBackbone": "locus_lightning.backbones.auto:AutoBackbone",
        "LlavaBackbone": "locus_lightning.backbones.llava:LlavaBackbone",
        "LlavaNextBackbone": "locus_lightning.backbones.llava_next:LlavaNextBackbone",
        "LlavaOnevisionBackbone": "locus_lightning.backbones.llava_onevision:LlavaOnevisionBackbone",
        "Qwen2VLBackbone": "locus_lightning.backbones.qwen2_vl:Qwen2VLBackbone",
        "Qwen2_5_VLBackbone": "locus_lightning.backbones.qwen2_5_vl:Qwen2_5_VLBackbone",
        "Qwen3VLBackbone": "locus_lightning.backbones.qwen3_vl:Qwen3VLBackbone",
        "MiMoVLBackbone": "locus_lightning.backbones.mimo_vl:MiMoVLBackbone",
        "InternVLBackbone": "locus_lightning.backbones.internvl:InternVLBackbone",
        "SmolVLMBackbone": "locus_lightning.backbones.smolvlm:SmolVLMBackbone",
        "Mistral3Backbone": "locus_lightning.backbones.mistral3:Mistral3Backbone",
        "AyaVisionBackbone": "locus_lightning.backbones.aya_vision:AyaVisionBackbone",
        "Qwen3_5Backbone": "locus_lightning.backbones.qwen3_5:Qwen3_5Backbone",
        "Glm4VBackbone": "locus_lightning.backbones.glm4v:Glm4VBackbone",
        "Gemma3Backbone": "locus_lightning.backbones.gemma3:Gemma3Backbone",
        "GenericBackbone": "locus_lightning.backbones.generic:GenericBackbone",
    },
}

_BASES: dict[Kind, str] = {
    "rewards": "locus_lightning.rewards.base:Reward",
    "cue_samplers": "locus_lightning.cue_samplers.base:CueSampler",
    "tasks": "locus_lightning.tasks.base:Task",
    "backbones": "locus_lightning.backbones.base:Backbone",
}


@dataclass(frozen=True)
class Plugin:
    """One offered plugin: ``target`` is ``module:Class``; ``distribution`` and ``version`` name the package it comes from."""

    kind: Kind
    name: str
    target: str
    distribution: str
    version: str

    @property
    def class_path(self) -> str:
        """The dotted path that a saved configuration holds."""
        return self.target.replace(":", ".")


def _from_entry_point(kind: Kind, point: EntryPoint) -> Plugin:
    dist = point.dist
    return Plugin(kind, point.name, point.value, dist.name if dist else "unknown", dist.version if dist else "?")


def available(kind: Kind) -> list[Plugin]:
    """Every plugin of a kind, built-ins first, then by name; read from metadata, nothing is imported."""
    from locus_lightning import __version__

    built_in = [Plugin(kind, name, target, "locus-lightning", __version__) for name, target in _BUILT_IN[kind].items()]
    installed = {_from_entry_point(kind, point) for point in entry_points(group=f"locus_lightning.{kind}")}
    return built_in + sorted(installed, key=lambda plugin: (plugin.name, plugin.distribution))


def shadowed(plugin: Plugin) -> bool:
    """Whether a package claims a name that a built-in has: the built-in is taken."""
    return plugin.name in _BUILT_IN[plugin.kind] and plugin.target != _BUILT_IN[plugin.kind][plugin.name]


def find(kind: Kind, name: str) -> Plugin:
    """The plugin called ``name``.

    Raises:
        PluginError: the name is unknown (the answer names the closest match and what is installed), or
            two distributions claim it (the answer names both).
    """
    plugins = available(kind)
    matches = [plugin for plugin in plugins if plugin.name == name]
    if len(matches) == 1 or (matches and name in _BUILT_IN[kind]):
        return matches[0]  # a package that claims a built-in's name does not get it; `locus plugins` reports the claim
    if matches:
        owners = " and ".join(sorted(f"{p.distribution} {p.version}" for p in matches))
        raise PluginError(f"the {kind} plugin name {name!r} is claimed by {owners}; uninstall one, or write the full class path.")
    names = [plugin.name for plugin in plugins]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise PluginError(f"no {kind} plugin is called {name!r}; {hint}Installed: {', '.join(names)}.")


def load(kind: Kind, name: str) -> type[Any]:
    """Import the plugin called ``name`` and return its class.

    Raises:
        PluginError: see :func:`find`; or the import fails, or what it finds is not a subclass of the kind's base.
    """
    plugin = find(kind, name)
    what = f"the {kind} plugin {plugin.name!r} ({plugin.distribution} {plugin.version}, {plugin.target})"
    try:
        loaded = _import(plugin.target)
    except (Exception, SystemExit) as cause:
        raise PluginError(f"{what} cannot be imported: {type(cause).__name__}: {cause}") from cause
    base = _import(_BASES[kind])
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise PluginError(f"{what} is not a subclass of {_BASES[kind].replace(':', '.')}.")
    missing = sorted(getattr(loaded, "__abstractmethods__", ()))
    if missing:
        raise PluginError(f"{what} cannot be built: it does not define {', '.join(missing)}.")
    if loaded.__name__ != plugin.name:
        raise PluginError(f"{what} is registered under a name that is not its class name {loaded.__name__!r}; rename the entry point.")
    return loaded


def load_named(kind: Kind, name: str) -> type[Any]:
    """The class called ``name``: a plugin's, or one at a dotted path.

    Raises:
        PluginError: see :func:`load`; or there is nothing at that path.
    """
    if "." not in name:
        return load(kind, name)
    module, _, attribute = name.rpartition(".")
    try:
        loaded: type[Any] = _import(f"{module}:{attribute}")
    except (ImportError, AttributeError) as cause:
        raise PluginError(
            f"{name} is no class that can be imported ({cause}); give a plugin's name, a dotted path, or FILE.py:NAME."
        ) from cause
    return loaded


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
