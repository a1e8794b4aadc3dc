"""Looking at a checkpoint before its weights are loaded: whether it is there, of which family, quantised, and what code it brings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from locus_lightning.backbones import toy
from locus_lightning.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

SHIPPED = {"locus-tiny": Path(__file__).parents[1] / "models" / "locus_tiny"}
"""Checkpoints that come with the package, by name."""


def announce_remote_code(checkpoint: str) -> None:
    """Log which code files of a checkpoint ``trust_remote_code`` is about to run."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(resolve(checkpoint))
    except (OSError, ValueError):
        return  # the check of the checkpoint reports this
    classes = [name for entry in config.get("auto_map", {}).values() for name in (entry if isinstance(entry, list) else [entry]) if name]
    files = sorted(
        {
            name.split("--")[0] + "/" + name.split("--")[1].split(".")[0] + ".py" if "--" in name else name.split(".")[0] + ".py"
            for name in classes
        }
    )
    if files:
        log.warning("trust_remote_code: %s runs the code of %s.", checkpoint, ", ".join(files))


def check_quantised(checkpoint: str, trust_remote_code: bool, adapters: bool, quantize: str | None, train_vision: bool) -> None:
    """Refuse what cannot be done with weights that are quantised in the checkpoint itself.

    Raises:
        ConfigError: names the setting.
    """
    method = quantisation_of(checkpoint, trust_remote_code)
    if method is None:
        return
    if not adapters:
        raise ConfigError(
            f"backbone.checkpoint {checkpoint!r} is quantised ({method}), so its weights cannot be trained; set backbone.lora, or take the "
            "checkpoint in 16 bits."
        )
    if quantize or train_vision:
        what = f"backbone.quantize is {quantize}" if quantize else "backbone.train_vision is true"
        raise ConfigError(
            f"{what}, but {checkpoint!r} is quantised already ({method}), its vision side too; take the checkpoint in 16 bits."
        )
    log.warning(
        "%s is quantised by its own (%s), its vision side too: adapters train, and `locus export` can write the adapter alone.",
        checkpoint, method,
    )  # fmt: skip


def quantisation_of(checkpoint: str, trust_remote_code: bool) -> str | None:
    """How the weights are quantised in the checkpoint itself, such as ``bitsandbytes``; None where they are not."""
    if checkpoint.startswith(toy.PREFIX):
        return None
    own = getattr(config_of(checkpoint, trust_remote_code), "quantization_config", None)
    if own is None:
        return None
    return str(own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", "unknown")).rsplit(".", 1)[-1].lower()


def check_vocabulary(checkpoint: str, processor: Any, trust_remote_code: bool) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for.

    Raises:
        CheckpointError: names both numbers.
    """
    rows, ids = getattr(config_of(checkpoint, trust_remote_code).get_text_config(), "vocab_size", None), len(processor.tokenizer)
    if rows is not None and ids > rows:
        raise CheckpointError(
            f"backbone.checkpoint {checkpoint!r}: its tokenizer has {ids:,} ids and its model {rows:,} embeddings, so they do not belong together."
        )


def resolve(checkpoint: str) -> str:
    """A checkpoint as transformers takes it: shipped names become their folder, ``~`` is written out."""
    if checkpoint in SHIPPED:
        return str(SHIPPED[checkpoint])
    return str(Path(checkpoint).expanduser()) if checkpoint.startswith("~") else checkpoint


def check(checkpoint: str, model_types: tuple[str, ...], backbone: str, trust_remote_code: bool) -> None:
    """Look at a checkpoint's config without loading weights.

    Raises:
        CheckpointError: it is not there, has no readable config, or is of a family this backbone does not speak (``model_types``
            empty: any will do).
    """
    if trust_remote_code:
        announce_remote_code(checkpoint)
    family = model_type(checkpoint, trust_remote_code)
    if model_types and family not in model_types:
        raise CheckpointError(
            f"backbone.checkpoint {checkpoint!r} is a {family!r} model and {backbone} speaks {', '.join(model_types)}; "
            "choose the backbone of its family (`locus plugins backbones`)."
        )


def model_type(checkpoint: str, trust_remote_code: bool = False) -> str:
    """What transformers calls the checkpoint's family, such as ``qwen2_5_vl``; its config is read, no weights.

    Raises:
        CheckpointError: it is not there, or has no readable config.
    """
    if not checkpoint.startswith(toy.PREFIX):
        return str(config_of(checkpoint, trust_remote_code).model_type)
    name = checkpoint.removeprefix(toy.PREFIX)
    if name not in toy.families():
        raise CheckpointError(
            f"backbone.checkpoint is {checkpoint!r}; toy checkpoints are {', '.join(toy.PREFIX + f for f in toy.families())}."
        )
    return toy.model_type(name)


def config_of(checkpoint: str, trust_remote_code: bool) -> Any:
    """A checkpoint's config.

    Raises:
        CheckpointError: it is not there, or has no readable config.
    """
    from transformers import AutoConfig

    checkpoint = resolve(checkpoint)
    folder = Path(checkpoint).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"backbone.checkpoint {checkpoint!r} is an adapter without its base model; write the whole model first (`locus export RUN FOLDER`) and "
            "give that folder."
        )
    looks_local = checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1
    if looks_local and not Path(checkpoint).expanduser().is_dir():
        raise CheckpointError(
            f"backbone.checkpoint {checkpoint!r} is no folder here; give an existing folder, a hub name such as owner/name, or {' or '.join(SHIPPED)}."
        )
    if looks_local and not (Path(checkpoint).expanduser() / "config.json").is_file():
        raise CheckpointError(f"backbone.checkpoint {checkpoint!r} has no config.json; give a folder that save_pretrained wrote.")
    try:
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as cause:
        raise CheckpointError(f"backbone.checkpoint {checkpoint!r} {_why(cause)}") from cause


def _why(cause: Exception) -> str:
    """What is wrong with a checkpoint that cannot be read, and what to do."""
    reason = " ".join(str(cause).split())
    if "trust_remote_code" in reason:
        return (
            "brings code of its own; read it and set backbone.trust_remote_code: true (--trust-remote-code for eval, analyze and export), or "
            "take the version in transformers' own form."
        )
    if "gated" in reason.lower():
        return "is gated: accept its licence on its page of the hub, then log in there (hf auth login)."
    if "model type" in reason or "model_type" in reason:
        return f"is of a kind that this transformers does not know; a newer one may ({reason[:200]})."
    return (
        "is neither a folder here nor a model that could be reached on the hub; check the name, the network and your access rights "
        f"({reason[:200]})."
    )
