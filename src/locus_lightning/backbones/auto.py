"""The backbone of a checkpoint's family, found by its ``model_type``."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from typing import Any

from locus_lightning import plugins
from locus_lightning.backbones import checkpoint as checkpoint_files
from locus_lightning.backbones.base import record_arguments
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.backbones.saved import ABOUT, SavedSettings, saved_settings
from locus_lightning.boxes import BoxFrame
from locus_lightning.errors import CheckpointError, ConfigError, PluginError
from locus_lightning.types import Size

log = logging.getLogger(__name__)


class AutoBackbone(HFBackbone):
    """Becomes the backbone that speaks the checkpoint's ``model_type``, and says which. A folder that a run saved or ``locus export`` wrote
    remembers its frame and the words of its task; they are taken from there.

    Args:
        checkpoint: see :class:`HFBackbone`; its config is read to choose.
        family: settings of that backbone alone, such as ``{max_pixels: 401408}`` for the Qwen families.
        kwargs: see :class:`HFBackbone`.

    Raises:
        CheckpointError: no backbone speaks this model.
        ConfigError: ``family`` holds settings that the backbone does not have.
    """

    def __init__(self, checkpoint: str, family: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(checkpoint, **kwargs)
        kind, saved = speaker_of(checkpoint, self.trust_remote_code)
        _become(self, kind, {**(saved.family if saved else {}), **(family or {}), **kwargs, "checkpoint": checkpoint})
        self.remembers = saved.task if saved else {}

    def frame(self, size: Size) -> BoxFrame:
        """Never runs."""
        raise TypeError("AutoBackbone stands for the backbone of a family; it is none itself")


def _become(backbone: HFBackbone, kind: type[HFBackbone], settings: dict[str, Any]) -> None:
    """Turn a backbone into one of another class, so that what is configured is what runs, and not a wrapper of it.

    Raises:
        ConfigError: the class does not take these settings.
    """
    log.info("backbone: %s, for %s.", kind.__name__, backbone.checkpoint)
    backbone.__class__ = kind
    record_arguments(backbone, kind, (), settings)
    try:
        kind.__init__(backbone, **settings)
    except TypeError as cause:
        raise ConfigError(f"backbone.family: {kind.__name__} does not take these settings ({cause}).") from None


@cache
def speakers() -> dict[str, type[HFBackbone]]:
    """``model_type`` -> the installed backbone that speaks it; of several the first listed."""
    families: dict[str, type[HFBackbone]] = {}
    for plugin in plugins.available("backbones"):
        try:
            kind = plugins.load("backbones", plugin.name)
        except PluginError as broken:
            log.warning("%s Its models are not found by AutoBackbone.", broken)
            continue
        for model_type in getattr(kind, "model_types", ()):
            families.setdefault(model_type, kind)
    return families


def speaker_of(checkpoint: str, trust_remote_code: bool = False) -> tuple[type[HFBackbone], SavedSettings | None]:
    """The backbone that speaks a checkpoint, and the settings that the folder remembers where a backbone here saved it.

    A folder may come from a stranger. Only installed backbone plugins are imported, whatever the folder says, and of its settings only
    those are taken that the backbone declares as its own (:meth:`HFBackbone.family_parameters`); the others are dropped with a warning.

    Raises:
        CheckpointError: see :func:`backbone_of`.
    """
    saved = saved_settings(checkpoint)
    for plugin in plugins.available("backbones") if saved else ():
        if saved is None or plugin.name == "AutoBackbone" or plugin.name != saved.backbone.rsplit(".", 1)[-1]:
            continue
        kind: type[HFBackbone] = plugins.load("backbones", plugin.name)
        if saved.backbone in (plugin.class_path, f"{kind.__module__}.{kind.__qualname__}"):  # a package may export it from elsewhere
            own = kind.family_parameters()
            foreign = sorted(set(saved.family) - set(own))
            if foreign:
                log.warning("%s: %s of %s ignored: not settings of %s alone.", checkpoint, ", ".join(foreign), ABOUT, kind.__name__)
            return kind, replace(saved, family={name: value for name, value in saved.family.items() if name in own})
    return backbone_of(checkpoint, trust_remote_code), None


def backbone_of(checkpoint: str, trust_remote_code: bool = False) -> type[HFBackbone]:
    """The backbone that speaks a checkpoint.

    Raises:
        CheckpointError: it is not there, or no backbone speaks it.
    """
    model_type, known = checkpoint_files.model_type(checkpoint, trust_remote_code), speakers()
    if model_type not in known:
        raise CheckpointError(
            f"backbone.checkpoint {checkpoint!r} is a {model_type!r} model, which no backbone speaks ({', '.join(known)}). If its card says "
            "how it writes boxes, use `class_path: GenericBackbone` with `frame: thousandths`, fractions, padded_fractions or original_pixels."
        )
    return known[model_type]
