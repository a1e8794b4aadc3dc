"""Models to look at: run folders, training checkpoints, adapters, Hugging Face folders and names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from locus_lightning import plugins
from locus_lightning.backbones.auto import AutoBackbone, speaker_of
from locus_lightning.backbones.base import Backbone
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.backbones.saved import read_beside_adapter, saved_settings
from locus_lightning.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Run:
    """A run folder, read: its configuration, its checkpoint, its summary (empty where it has none)."""

    folder: Path
    checkpoint: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, checkpoint: Path | None) -> Run:
        """Find the parts.

        Raises:
            CheckpointError: one is missing.
        """
        config, checkpoint_file = folder / "config.yaml", checkpoint or folder / "checkpoints" / "last.ckpt"
        if not config.is_file():
            raise CheckpointError(f"{folder} has no config.yaml; give the folder of a run, such as runs/llava/version_0.")
        if not checkpoint_file.is_file():
            raise CheckpointError(f"there is no checkpoint {checkpoint_file}; give one with --ckpt.")
        summary = folder / "summary.json"
        return cls(folder, checkpoint_file, _config(config), _summary(summary))

    def backbone(self, dtype: str, trust_remote_code: bool = False) -> HFBackbone:
        """The run's backbone in ``dtype``, not quantised, not loaded. The run's own ``trust_remote_code`` is not taken: the folder may come
        from a stranger."""
        from jsonargparse import ArgumentParser

        own = {"dtype": dtype, "quantize": None, "gradient_checkpointing": False, "kernels": None, "trust_remote_code": trust_remote_code}
        stated = self._stated("backbone")
        name = str(stated.get("class_path", ""))
        if _installed_class(name) is None:
            raise CheckpointError(
                f"{self.folder / 'config.yaml'} names the backbone {name!r}, which is no installed backbone plugin; a run's folder does not "
                "decide what is imported. Install the package that offers it (`locus plugins backbones`)."
            )
        # Nothing but the class and its settings is taken: other keys of the parser's, such as dict_kwargs, could carry anything.
        settings = {"class_path": name, "init_args": {**(stated.get("init_args") or {}), **own}}
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--backbone", type=Backbone)
        backbone = parser.instantiate_classes(parser.parse_object({"backbone": settings})).backbone
        if not isinstance(backbone, HFBackbone):
            raise ConfigError(f"a run's model is opened by Hugging Face backbones; {type(backbone).__name__} is none.")
        backbone.trust_remote_code = trust_remote_code
        backbone.remembers = {**backbone.remembers, **_remembered_by(self._stated("task"))}
        return backbone

    def _stated(self, key: str) -> dict[str, Any]:
        model = self.config.get("model")
        arguments = model.get("init_args") if isinstance(model, dict) else None
        stated = arguments.get(key) if isinstance(arguments, dict) else None
        return stated if isinstance(stated, dict) else {}


def _config(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as cause:
        raise CheckpointError(
            f"{path} cannot be read ({str(cause).splitlines()[0]}); restore it from the command that made the run."
        ) from cause
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(
            f"{path} is not the configuration of a run: it holds no model; restore it from the command that made the run."
        )
    return content


def _summary(path: Path) -> dict[str, Any]:
    """What a run summed up; empty where it did not, or where a full disk left half a file."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except (ValueError, OSError):
        content = {}
    return content if isinstance(content, dict) else {}


def _installed_class(class_path: str) -> str | None:
    """The name of the installed backbone plugin that a dotted path means, or None. Nothing is imported."""
    for plugin in plugins.available("backbones"):
        if class_path in (plugin.class_path, f"locus_lightning.{plugin.name}", plugin.name):
            return plugin.name
    return None


def _remembered_by(task: Any) -> dict[str, Any]:
    """The settings of cue search in a run's task, wherever it stands in a mixture."""
    if isinstance(task, list):
        return {key: value for inner in task for key, value in _remembered_by(inner).items()}
    if not isinstance(task, dict):
        return {}
    settings = task.get("init_args") or {}
    if str(task.get("class_path", "")).rsplit(".", 1)[-1] == "CueSearch":
        return {key: settings[key] for key in ("prompt", "layout") if settings.get(key)}
    return _remembered_by(settings.get("tasks"))


def read_checkpoint(path: Path, *, resume: bool = False) -> dict[str, Any]:
    """The content of a training checkpoint, its tensors mapped from the file.

    Args:
        path: the file.
        resume: it is to be continued, which takes more than its weights.

    Raises:
        CheckpointError: it is damaged, holds more than plain data, or is none of ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as cause:
        reason = str(cause).splitlines()[0][:120] if str(cause) else "it is empty"
        raise CheckpointError(
            f"{path} cannot be read as a training checkpoint ({type(cause).__name__}: {reason}); take another one of the run."
        ) from cause
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path} is not a training checkpoint: it holds no state_dict; give one from a run folder.")
    own = content.get("locus")
    if not isinstance(own, dict) or not own.get("ranks"):
        raise CheckpointError(f"{path} was not written by locus (its `locus` entry is missing); give one from a run folder.")
    if resume and not (content.get("optimizer_states") and content.get("loops") and content.get("lr_schedulers")):
        raise CheckpointError(f"{path} holds no state of the optimiser, so it cannot be continued; give last.ckpt of a run folder.")
    return content


def take(backbone: HFBackbone, checkpoint: Path) -> int:
    """Put a checkpoint's weights into a loaded backbone; how many numbers changed.

    Raises:
        CheckpointError: it is not a training checkpoint of this model, or nothing was trained.
    """
    content = read_checkpoint(checkpoint)
    state, trained_on = content["state_dict"], content["locus"].get("trained_on", {})
    state = {name.removeprefix("backbone."): value for name, value in state.items() if not name.startswith("backbone.reference.")}
    own = dict(backbone.named_parameters())
    strange = [name for name in state if name not in own]
    if strange or any(own[name].shape != value.shape for name, value in state.items()):
        raise CheckpointError(f"{checkpoint} does not fit {backbone.checkpoint}: it holds {len(strange)} unknown weights {strange[:2]}.")
    broken = next((name for name, value in state.items() if not bool(torch.isfinite(value).all())), None)
    if broken:
        raise CheckpointError(f"{checkpoint} holds weights that are not finite, such as {broken}; take an earlier checkpoint of the run.")
    backbone.remembers = {**backbone.remembers, "trained_on": trained_on}
    changed = 0
    with torch.no_grad():
        for name, value in state.items():
            changed += int((own[name] != value.to(own[name])).sum())
            own[name].copy_(value)
    if not changed:
        raise CheckpointError(f"{checkpoint} holds the weights of {backbone.checkpoint} unchanged: nothing was trained.")
    return changed


def open_model(name: str, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False) -> HFBackbone:
    """A loaded backbone, ready to answer.

    Args:
        name: a run's folder, a ``.ckpt`` in one, a folder with an adapter, a Hugging Face folder or name, or ``toy:FAMILY``.
        dtype: of the weights; ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        device: where it lives; None: the first GPU where there is one, else the CPU.
        trust_remote_code: run code that comes with the checkpoint. Nothing that lies beside the weights can switch this on.

    Raises:
        CheckpointError: it is none of these, or does not fit on the GPU.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    try:
        return _open(name, dtype, trust_remote_code, torch.device(device)).to(device)
    except torch.cuda.OutOfMemoryError as cause:
        raise CheckpointError(f"{name} does not fit on {device} in {dtype}; try --dtype bfloat16, or --dtype float16 ({cause}).") from cause


def _open(name: str, dtype: str, trust_remote_code: bool, device: torch.device) -> HFBackbone:
    path = Path(name).expanduser()
    if path.suffix == ".ckpt" or (path / "config.yaml").is_file():
        run = Run.read(path.parent.parent, path) if path.suffix == ".ckpt" else Run.read(path, None)
        backbone = run.backbone(dtype, trust_remote_code)
        backbone.check()
        backbone.load_on = device
        backbone.load()
        take(backbone, run.checkpoint)
        return backbone
    if (path / "adapter_config.json").is_file():
        from peft import PeftModel

        base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
        kind: Any
        kind, saved = speaker_of(str(path)) if saved_settings(str(path)) else (AutoBackbone, None)
        backbone = kind(base, **(saved.family if saved else {}), dtype=dtype, trust_remote_code=trust_remote_code)
        if saved:
            backbone.remembers = saved.task
        backbone.check()
        backbone.load_on = device
        backbone.load()
        backbone.model = PeftModel.from_pretrained(backbone.model, str(path))
        read_beside_adapter(path, dict(backbone.model.named_parameters()))
        backbone.model = backbone.model.merge_and_unload()
        return backbone
    backbone = AutoBackbone(name, dtype=dtype, trust_remote_code=trust_remote_code)
    backbone.check()
    backbone.load_on = device
    backbone.load()
    return backbone
