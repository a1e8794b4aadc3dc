"""Checkpoints of real architectures at toy size, made on the spot: nothing is downloaded.

``toy:llava`` (and the other names of :func:`families`) may stand wherever a checkpoint is named. The folder it becomes holds ordinary
config, weights (random), tokenizer and processor files, and is loaded like any other.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from locus_lightning.errors import CheckpointError

PREFIX = "toy:"

_FAMILIES = {
    "llava": ("llava:llava", "llava"),
    "locus_tiny": ("locus_tiny:locus_tiny", "llava"),
    "llava_next": ("llava:llava_next", "llava_next"),
    "llava_onevision": ("llava:llava_onevision", "llava_onevision"),
    "qwen2_vl": ("qwen:qwen2_vl", "qwen2_vl"),
    "qwen2_5_vl": ("qwen:qwen2_5_vl", "qwen2_5_vl"),
    "qwen3_vl": ("qwen:qwen3_vl", "qwen3_vl"),
    "qwen3_vl_moe": ("qwen:qwen3_vl_moe", "qwen3_vl_moe"),
    "qwen3_5": ("qwen:qwen3_5", "qwen3_5"),
    "qwen3_5_moe": ("qwen:qwen3_5_moe", "qwen3_5_moe"),
    "glm4v": ("glm:glm4v", "glm4v"),
    "internvl": ("others:internvl", "internvl"),
    "aya_vision": ("others:aya_vision", "aya_vision"),
    "idefics3": ("others:idefics3", "idefics3"),
    "smolvlm": ("others:smolvlm", "smolvlm"),
    "mistral3": ("others:mistral3", "mistral3"),
    "gemma3": ("others:gemma3", "gemma3"),
}
"""Name -> where it is built (``module:function``, giving model and processor), and its transformers ``model_type``."""


def save_toy_checkpoint(family: str, folder: Path) -> Path:
    """Write a toy checkpoint of one of :func:`families` to ``folder``.

    The weights are drawn from torch's current generator: seed it for the same model again.

    Raises:
        CheckpointError: no such toy family.
    """
    if family not in _FAMILIES:
        raise CheckpointError(f"there is no toy checkpoint {PREFIX}{family}; choose from {', '.join(PREFIX + f for f in _FAMILIES)}.")
    from safetensors.torch import save_model
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a toy is written and read in a blink
    module, _, name = _FAMILIES[family][0].partition(":")
    model, processor = getattr(import_module(f"{__name__}.{module}"), name)()
    # not model.save_pretrained: in a distributed run it writes on the first process only
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_model(model, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
    processor.save_pretrained(folder)
    return folder


def families() -> tuple[str, ...]:
    """Names of the toy families."""
    return tuple(_FAMILIES)


def model_type(family: str) -> str:
    """The transformers ``model_type`` of a toy family."""
    return _FAMILIES[family][1]
