"""Parts of a training checkpoint: random generators, and whether its weights fit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import CheckpointError


def generator_state() -> dict[str, Any]:
    """The state of every random generator of this process, in plain containers."""
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002 - others may use it
    return {
        "python": random.getstate(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),  # type: ignore[union-attr,index]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_generator_state(state: dict[str, Any]) -> None:
    """Take :func:`generator_state` back."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def check_weights(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint of another model: its weights would be left out silently, and the base model's figures reported as its own.

    Raises:
        CheckpointError: names the first weight that does not fit.
    """
    own = {f"backbone.{name}": parameter for name, parameter in backbone.named_parameters()}
    foreign = [name for name in state if name not in own and not name.startswith("backbone.reference.")]
    shapes = [name for name, value in state.items() if name in own and own[name].shape != value.shape]
    trained = {f"backbone.{name}" for name in backbone.saved_parameters() if not name.startswith("reference.")}
    missing = sorted(trained - set(state))
    for what, names in (
        ("weights that this model does not have", foreign),
        ("weights of other shapes", shapes),
        ("no weights for", missing),
    ):
        if names:
            raise CheckpointError(
                f"the checkpoint does not fit {backbone.checkpoint}: it has {what} ({len(names)}, such as {names[0]}); give a checkpoint of "
                "the same model and adapter settings."
            )
