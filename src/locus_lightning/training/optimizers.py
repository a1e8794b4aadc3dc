"""Muon for matrices, AdamW for the rest: one optimiser to the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from locus_lightning.backbones.embeddings import is_embedding
from locus_lightning.errors import ConfigError


class MuonAdamW(Optimizer):
    """torch's Muon for the weights of linear layers, torch's AdamW for embeddings, head, convolutions, norms and biases.

    A small model that learns from scratch what is where binds names to places several times sooner than with AdamW alone
    (configs/tiny_pretrain.yaml). Needs torch 2.9 or later.

    Args:
        params: The parameters that train. Embeddings are matrices too: the backbone marks them (``mark_embedding``).
        lr: The learning rate of AdamW.
        muon_lr: The learning rate of Muon.
        betas: The betas of AdamW.
        momentum: The momentum of Muon.
        weight_decay: The weight decay of both.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1.5e-3,
        muon_lr: float = 2e-2,
        betas: tuple[float, float] = (0.9, 0.98),
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(f"MuonAdamW needs torch 2.9 or later; this is {torch.__version__}. Use torch.optim.AdamW.")
        parameters = list(params)
        if any(isinstance(one, dict) for one in parameters):
            raise ConfigError("MuonAdamW makes groups of its own and takes none (backbone.lora.plus); use torch.optim.AdamW.")
        matrices = [p for p in parameters if p.dim() == 2 and not is_embedding(p)]
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        muon = torch.optim.Muon(matrices, lr=muon_lr, momentum=momentum, weight_decay=weight_decay) if matrices else None
        adamw = AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay) if rest else None
        self._parts: list[Optimizer] = [part for part in (muon, adamw) if part is not None]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._link()

    def _link(self) -> None:
        """The parts work on this optimiser's groups and state, which are what is scheduled, saved and restored."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state back."""
        super().load_state_dict(state_dict)
        self._link()
