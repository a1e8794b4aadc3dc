"""SupervisedModule: next-token loss on the right answer, through the same data and backbone. Also the cold start."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from locus_lightning.backbones.base import Backbone
from locus_lightning.data.source import CueBatch
from locus_lightning.objectives.supervised import next_token_loss
from locus_lightning.rollout.base import RolloutEngine, Sampling
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.training import CueModule


class SupervisedModule(CueModule):
    """Teaches the answer itself: the control of the paper's table on training methods, and the cold start of a toy.

    Args:
        backbone: the model.
        rollout: how completions are drawn in validation.
        validation: of the held-out answers; null: greedy, 256 tokens.
        train_vision: whether the vision side learns too; null: as the backbone is configured.
        optimizer: from parameters to an optimiser.
        schedule: of the learning rate after the warm-up.
        warmup_ratio: share of all steps over which the rate rises from 0.
    """

    def __init__(
        self,
        backbone: Backbone,
        rollout: RolloutEngine | None = None,
        validation: Sampling | None = None,
        train_vision: bool | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-5, weight_decay=1e-2),
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        warmup_ratio: float = 0.05,
    ) -> None:
        validation = validation or Sampling(temperature=0.0)
        super().__init__(backbone, rollout or HFRollout(), validation, optimizer, schedule, warmup_ratio)
        self.train_vision = train_vision

    def configure_model(self) -> None:
        """Load weights and choose what trains."""
        super().configure_model()
        self.backbone.set_trainable(vision=self.train_vision)

    def training_step(self, batch: CueBatch, batch_idx: int) -> Tensor:
        """Mean negative log-likelihood of the right answers' tokens."""
        prompts = self.backbone.encode(list(batch))
        answers = [[self.backbone.tokenize_answer(self.backbone.right_answer(sample))] for sample in batch]
        logps_BGT, _ = self.backbone.logps(prompts, answers)
        lengths_BG = torch.tensor([[len(ids) for ids in row] for row in answers], device=logps_BGT.device)
        mask_BGT = torch.arange(logps_BGT.shape[-1], device=logps_BGT.device) < lengths_BG[..., None]
        loss = next_token_loss(logps_BGT, mask_BGT)
        self.log("update/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss
