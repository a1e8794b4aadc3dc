"""The base checkpoint's own files beside trained weights: tokenizer, processor, template, generation settings and configuration as they were.

Libraries write these files in the layout of their own version, in which older ones do not find what they look for. Training changes none of them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from locus_lightning.backbones import toy
from locus_lightning.backbones.checkpoint import resolve
from locus_lightning.errors import ConfigError

_KEPT = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "image_processor_config.json", "chat_template*", "generation_config.json",
)  # fmt: skip

_DTYPE_KEYS = ("torch_dtype", "dtype")


def base_folder(checkpoint: str) -> Path | None:
    """The folder of a checkpoint on this machine: a local one, or the Hub's cache; None for toys and where there is none."""
    if checkpoint.startswith(toy.PREFIX):
        return None
    local = Path(resolve(checkpoint))
    if local.is_dir():
        return local
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, local_files_only=True))
    except Exception:  # nothing in the cache, or no hub name
        return None


def link_base_files(checkpoint: str, folder: Path) -> None:
    """Lay a checkpoint's files out in a folder, weights as links; a hub checkpoint is downloaded first.

    Raises:
        ConfigError: a toy checkpoint, which is drawn anew whenever it is loaded.
    """
    if checkpoint.startswith(toy.PREFIX):
        raise ConfigError(
            f"{checkpoint} is drawn anew whenever it is loaded; write it with `locus toy FAMILY FOLDER` and name that folder."
        )
    local = Path(resolve(checkpoint))
    if not local.is_dir():
        from huggingface_hub import snapshot_download

        local = Path(snapshot_download(checkpoint))
    folder.mkdir(parents=True, exist_ok=True)
    for path in local.iterdir():
        place = folder / path.name
        if not path.is_file() or path.resolve() == place.resolve():
            continue
        place.unlink(missing_ok=True)
        if path.suffix in (".safetensors", ".bin"):
            place.symlink_to(path.resolve())
        else:
            shutil.copyfile(path, place)


def keep_base_files(checkpoint: str, folder: Path, dtype: torch.dtype) -> bool:
    """Put the base's own files in place of those that were written anew, and its configuration with only the type of the weights changed.

    Args:
        checkpoint: the base.
        folder: of the weights that were just written.
        dtype: of these weights.

    Returns:
        Whether the base's files were at hand.
    """
    base = base_folder(checkpoint)
    if base is None or base.resolve() == folder.resolve():
        return False
    names = {path.name for pattern in _KEPT for path in base.glob(pattern) if path.is_file()}
    for stale in {path for pattern in _KEPT for path in folder.glob(pattern)}:
        if stale.name not in names and not stale.name.startswith("adapter"):
            stale.unlink()
    for name in sorted(names):
        shutil.copyfile(base / name, folder / name)
    written, original = folder / "config.json", base / "config.json"
    if written.is_file() and original.is_file():
        config = json.loads(original.read_text(encoding="utf-8-sig"))
        _set_dtype(config, str(dtype).removeprefix("torch."))
        config.pop("quantization_config", None)
        if not any(config.get(key) for key in _DTYPE_KEYS):
            config["dtype"] = str(dtype).removeprefix("torch.")
        written.write_text(json.dumps(config, indent=2) + "\n")
    return True


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    for key, value in config.items():
        if key in _DTYPE_KEYS and value is not None:
            config[key] = dtype
        elif isinstance(value, dict):
            _set_dtype(value, dtype)


def readable_by_others(folder: Path) -> None:
    """Weights files as readable as other files: safetensors writes them for their owner alone."""
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
