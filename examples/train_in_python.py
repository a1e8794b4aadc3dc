"""Cue search by GRPO without the command line: a module, its data, Lightning's Trainer. Run: ``python examples/train_in_python.py 20``."""

from __future__ import annotations

import sys

import lightning as L
import torch

from locus_lightning import GRPO, AutoBackbone, CueDataModule, HFRollout, LocusModule, ObjectCues, SamplingParams, SceneCues


def main(steps: int) -> float:
    """Train locus-tiny on drawn scenes and return its mean IoU on held-out cues."""
    L.seed_everything(0)
    module = LocusModule(
        AutoBackbone("locus-tiny"),
        objective=GRPO(kl_coef=0.0),
        rollout=HFRollout(),
        sampling=SamplingParams(max_new_tokens=16),
        groups_per_step=16,
        micro_batch_size=16,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1.5e-4, betas=(0.9, 0.98)),
    )
    scenes = SceneCues(objects=(4, 6), object_size=(0.065, 0.22), val_size=64, cue_sampler=ObjectCues(min_side=12))
    trainer = L.Trainer(max_steps=steps, gradient_clip_val=1.0, num_sanity_val_steps=-1, limit_val_batches=1.0, logger=False,
                        accelerator="auto", devices=1, enable_checkpointing=False)  # fmt: skip
    trainer.fit(module, datamodule=CueDataModule(scenes))
    (figures,) = trainer.validate(module, datamodule=trainer.datamodule)
    print(f"mean IoU {module.before['val/iou']:.3f} -> {figures['val/iou']:.3f}")
    return figures["val/iou"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
