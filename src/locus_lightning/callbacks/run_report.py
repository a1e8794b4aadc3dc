"""What a run is about to cost, in two lines before its first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from locus_lightning.backbones import loading
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.data.source import CueDataset, CueKey, spread
from locus_lightning.training import memory
from locus_lightning.training.grpo import LocusModule
from locus_lightning.types import CueSample, Prompt

log = logging.getLogger("locus_lightning")


class Opening(L.Callback):
    """Tells parameters and computed memory when a fit begins; ``locus preflight`` tells more, and measures.

    Args:
        looked_at: training samples among which the longest prompt is looked for; 0 says nothing.
    """

    def __init__(self, looked_at: int = 8) -> None:
        self.looked_at = looked_at

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Weights are loaded, the optimiser stands."""
        backbone = getattr(pl_module, "backbone", None)
        if not (self.looked_at and trainer.is_global_zero and isinstance(backbone, HFBackbone)):
            return
        longest = longest_prompts(backbone, trainer.datamodule.datasets["train"], self.looked_at)[:1]  # type: ignore[attr-defined]
        if not longest:
            return
        length, _, sample = longest[0]
        (prompt,) = backbone.prompts([sample])
        found = computed(pl_module, prompt)
        trained = sum(p.numel() for p in backbone.model.parameters() if p.requires_grad)
        log.info("%s parameters train; the longest of %d prompts looked at has %s tokens.", f"{trained:,}", self.looked_at, f"{length:,}")
        if found is None:
            return
        unit, scale = memory.in_unit(found["peak"])
        parts = ", ".join(f"{name} {found[name] / scale:.1f}" for name in ("weights", "optimiser", "rollout", "update"))
        card = f" of {torch.cuda.get_device_properties(0).total_memory / memory.GIB:.0f} GiB" if torch.cuda.is_available() else ""
        log.info("memory, computed: peak %.1f %s%s (%s).", found["peak"] / scale, unit, card, parts)


def cues_of(found: Any) -> list[CueSample]:
    """The cue samples of what a data set gave."""
    return [sample for sample in (found if isinstance(found, tuple) else (found,)) if isinstance(sample, CueSample)]


def longest_prompts(backbone: HFBackbone, data: CueDataset, count: int) -> list[tuple[int, int, CueSample]]:
    """(tokens, index, sample) of the cue samples among ``count`` training samples, the longest prompt first."""
    found = [(i, sample) for i in spread(len(data), count) for sample in cues_of(data[CueKey(0, i)])]
    return sorted(((backbone.prompt_length(sample), i, sample) for i, sample in found), key=lambda row: row[:2], reverse=True)


def computed(module: Any, prompt: Prompt) -> dict[str, float] | None:
    """What :func:`memory.estimate` says of a module; None for an architecture that does not name its sizes as others do."""
    backbone = module.backbone
    try:
        return memory.estimate(memory.sizes(loading.skeleton(backbone.hf.config, backbone.trust_remote_code)), asked(module, prompt))
    except (AttributeError, TypeError, ValueError, KeyError) as cause:
        log.info("memory cannot be computed for this architecture (%s: %s); `locus preflight` measures it.", type(cause).__name__, cause)
        return None


def asked(module: Any, prompt: Prompt) -> memory.Load:
    """What a module's configuration asks of memory, at a prompt's length."""
    backbone, rl = module.backbone, isinstance(module, LocusModule)
    optimizer, tower = type(module.trainer.optimizers[0]).__name__, backbone.hf.config.vision_config
    patch: int | Sequence[int] = tower.patch_size
    side = patch if isinstance(patch, int) else patch[0]
    pixels = 3 * getattr(tower, "temporal_patch_size", 1) * side**2
    batch = module.trainer.datamodule.batch_size
    return memory.Load(
        prompt=len(prompt.ids_P),
        completion=module.sampling.max_new_tokens if rl else module.validation.max_new_tokens,
        group=module.group_size if rl else 1,
        micro_batch=module.micro_batch_size if rl else batch,
        decoded=min(batch, getattr(module.rollout, "prompts_at_once", 32)),
        weight_bytes=backbone.dtype.itemsize,
        nf4=bool(backbone.quantize),
        rank=backbone.lora.rank if backbone.lora else 0,
        checkpointing=backbone.gradient_checkpointing,
        packed=backbone.share_prefix and backbone.packs,
        vision_trains=backbone.train_vision,
        reference=rl and module.objective.kl > 0 and backbone.lora is None,
        optimizer_bytes=2 if "8bit" in optimizer else 0 if optimizer == "SGD" else 8,
        patches=sum(v.numel() for key, v in prompt.vision.items() if key == "pixel_values") // pixels,
        pixels=pixels,
    )
