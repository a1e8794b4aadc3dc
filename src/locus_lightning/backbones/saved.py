"""What a saved folder remembers of the backbone and the task that it was written with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from locus_lightning.backbones.checkpoint import resolve
from locus_lightning.errors import CheckpointError

ABOUT = "locus.json"
"""Beside saved weights: which backbone wrote them, in what frame and with what words."""


def write_about(folder: Path, kind: type, family: Mapping[str, Any], remember: Mapping[str, Any]) -> None:
    """Write which backbone wrote a folder, the settings of its family, and what the task wants to be remembered."""
    about = {"backbone": f"{kind.__module__}.{kind.__qualname__}", "family": dict(family), **remember}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


BESIDE_ADAPTER = "trained_beside_adapter.safetensors"
"""Beside an adapter: other weights that training changed, such as those of the vision side. peft alone does not load them."""


def plain_name(name: str) -> str:
    """A parameter's name in the base model, without what adapters put around it."""
    return name.removeprefix("model.").removeprefix("base_model.model.").replace(".base_layer", "")


def write_beside_adapter(folder: Path, parameters: Mapping[str, Tensor], trained: Set[str]) -> None:
    """Write what was trained and belongs to no adapter; nothing where that is nothing."""
    from safetensors.torch import save_file

    rest = {plain_name(n): parameters[n].detach().cpu().contiguous() for n in sorted(trained) if n in parameters and "lora_" not in n}
    plain = {name: value for name, value in rest.items() if value.is_floating_point()}
    if plain:
        save_file(plain, str(folder / BESIDE_ADAPTER), metadata={"format": "pt"})


def read_beside_adapter(folder: Path, parameters: Mapping[str, Tensor]) -> None:
    """Put :func:`write_beside_adapter`'s weights into the base model's parameters.

    Raises:
        CheckpointError: they are of another model.
    """
    path = folder / BESIDE_ADAPTER
    if not path.is_file():
        return
    from safetensors.torch import load_file

    own = {plain_name(name): parameter for name, parameter in parameters.items()}
    for name, value in load_file(str(path)).items():
        if name not in own or own[name].shape != value.shape:
            raise CheckpointError(f"{path} holds weights that the base model does not have ({name}); give the base that it was trained on.")
        own[name].data.copy_(value)


@dataclass(frozen=True)
class SavedSettings:
    """What a folder remembers of the backbone that wrote it. The folder may come from a stranger, so nothing here may choose code or
    another checkpoint: the reader takes only settings that the named backbone class declares as its own.

    Args:
        backbone: dotted class path of the backbone.
        family: settings of that class alone, such as its frame.
        task: what the task wants to be remembered, such as its words.
    """

    backbone: str
    family: dict[str, Any]
    task: dict[str, Any]


def saved_settings(checkpoint: str) -> SavedSettings | None:
    """The settings that a saved folder remembers, or None for a checkpoint that no backbone of ours wrote.

    Raises:
        CheckpointError: the file is there and is not of the expected form.
    """
    path = Path(resolve(checkpoint)) / ABOUT
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        backbone, family = content["backbone"], content.get("family", {})
        if not isinstance(backbone, str) or not isinstance(family, dict):
            raise ValueError("backbone must be a string, and family a mapping")
    except (ValueError, KeyError, TypeError) as cause:
        raise CheckpointError(
            f"{path} is not the record of a saved backbone ({type(cause).__name__}: {cause}); remove it, and state the frame in the configuration."
        ) from cause
    return SavedSettings(backbone, family, {key: value for key, value in content.items() if key not in ("backbone", "family")})
