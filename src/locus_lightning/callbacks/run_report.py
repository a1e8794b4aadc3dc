"""What a run is about to cost, in two lines before its first step."""

from __future__ import annotations

import logging

import lightning as L
import torch

from locus_lightning.training import memory
from locus_lightning.training.base import TaskModule

log = logging.getLogger("locus_lightning")


class RunReport(L.Callback):
    """Tells parameters and computed memory when a fit begins; ``locus preflight`` tells more, and measures.

    Args:
        samples: training samples among which the longest prompt is looked for; 0 says nothing.
    """

    def __init__(self, samples: int = 8) -> None:
        self.samples = samples

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Weights are loaded and the optimiser exists."""
        if not (self.samples and trainer.is_global_zero and isinstance(pl_module, TaskModule)):
            return
        longest = memory.longest_prompts(pl_module, self.samples)[:1]
        if not longest:
            return
        length, _, sample = longest[0]
        (prompt,) = pl_module.backbone.encode_pixels(pl_module.contents([sample]))
        trained = sum(p.numel() for p in pl_module.backbone.parameters() if p.requires_grad)
        log.info("%s parameters train; the longest of %d probed prompts has %s tokens.", f"{trained:,}", self.samples, f"{length:,}")
        estimate = memory.estimate_memory(pl_module, prompt)
        if estimate is None:
            return
        unit, scale = memory.in_unit(estimate["peak"])
        parts = ", ".join(f"{name} {estimate[name] / scale:.1f}" for name in ("weights", "optimiser", "rollout", "update"))
        card = f" of {torch.cuda.get_device_properties(0).total_memory / memory.GIB:.0f} GiB" if torch.cuda.is_available() else ""
        log.info("memory, computed: peak %.1f %s%s (%s).", estimate["peak"] / scale, unit, card, parts)
