"""The reference model: the policy without its adapter, with earlier adapters, or a frozen copy of all that trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from locus_lightning.backbones import loading
from locus_lightning.backbones.serving import Serving
from locus_lightning.errors import ConfigError


class WithReference(Serving):
    """Base of :class:`~locus_lightning.backbones.hf.HFBackbone`."""

    lora: Any
    _changed: set[str]

    def _model(self, reference: bool) -> Any:
        """The policy's model; for the reference its frozen copy, where there is one (with LoRA the adapter is switched off or exchanged)."""
        return self.reference if reference and self.reference is not None and not self.lora else self.hf

    def freeze_reference(self, *, moves: bool = False) -> None:
        """See :meth:`Backbone.freeze_reference`; the frozen vision side is shared, not copied."""
        if self.reference is not None or (self.lora and not moves):
            return
        if self.lora:
            own = {name.replace(".", "/"): p.detach().clone() for name, p in self.named_parameters() if p.requires_grad}
            self.reference = nn.ParameterDict({name: nn.Parameter(value, requires_grad=False) for name, value in own.items()})
            copied = set(own)
        else:
            shared = {} if self._vision_moves else {id(m): m for m in loading.vision_modules(self.hf)}
            self.reference = copy.deepcopy(self.hf, shared)
            trained = set(self.hf.parameters())
            copied = {name for name, p in self.reference.named_parameters() if p not in trained}
        for name, parameter in self.reference.named_parameters():
            if name in copied:
                parameter.requires_grad_(False)
        if moves or not self.weights_on_disk:
            self._changed |= {f"reference.{name}" for name in copied}

    @torch.no_grad()
    def move_reference(self, mixing: float) -> None:
        """See :meth:`Backbone.move_reference`."""
        if self.reference is None:
            raise ConfigError("there is no reference copy to move; call freeze_reference(moves=True) first.")
        policy = dict(self.named_parameters()) if self.lora else dict(self.hf.named_parameters())
        for name, parameter in self.reference.named_parameters():
            own = policy[name.replace("/", ".")]
            if own is not parameter:
                parameter.lerp_(own.to(parameter.dtype), mixing)

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """While the context lasts, the policy's model is the reference model: its adapter is off, or holds the reference's matrices."""
        if not self.lora:
            yield
            return
        if self.reference is None:
            with self.model.disable_adapter():
                yield
            return
        policy = dict(self.named_parameters())
        pairs = [(policy[name.replace("/", ".")], parameter) for name, parameter in self.reference.named_parameters()]
        self._exchange(pairs)
        try:
            yield
        finally:
            self._exchange(pairs)

    @staticmethod
    def _exchange(pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
        for own, other in pairs:
            own.data, other.data = other.data, own.data
