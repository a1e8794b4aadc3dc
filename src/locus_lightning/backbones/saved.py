"""What a saved folder remembers of the backbone and the task that it was written with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locus_lightning.backbones.loading import resolve
from locus_lightning.errors import CheckpointError

ABOUT = "locus.json"
"""Beside saved weights: which backbone wrote them, in what frame and with what words."""


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
