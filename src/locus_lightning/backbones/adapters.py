"""LoRA adapters (peft): which layers get one, and the type that they compute in. How they act in decoding is in ``decoding_weights``."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locus_lightning.backbones.retyped import Retyped, retype
from locus_lightning.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on the language model's linear layers (peft).

    Args:
        rank: The width of an adapter.
        alpha: The scale of an adapter: its product is multiplied by alpha / rank.
        targets: The names of the linear layers that get adapters, such as ``[q_proj, v_proj]``. Null is all of the language model's,
            without the head.
        dora: Whether direction and magnitude of a weight are trained apart (DoRA, Liu et al. 2024). It takes more memory and time.
        rslora: Whether the product is multiplied by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023), so that high ranks learn.
        rank_pattern: Ranks of single layers by their name, such as ``{q_proj: 128}``, in place of ``rank``.
        alpha_pattern: Likewise their alpha.
        plus: How many times the learning rate the B matrices get (LoRA+, Hayou et al. 2024, takes 16); 1 is the same for all.
        dropout: 0. Another value is refused: rollout, reference and update have to be the same function.
        init: ``default``. ``pissa`` and ``olora`` are refused: they change the weights under the adapter, so that switching it off would no
            longer give the reference model, and a saved adapter would not fit its checkpoint.
        modules_to_save: Null. Modules that train beside the adapters are refused: the reference model shares them.
    """

    rank: int = 64
    alpha: int = 64
    targets: list[str] | None = None
    dora: bool = False
    rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    plus: float = 1.0
    dropout: float = 0.0
    init: str = "default"
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        if min([self.rank, *self.rank_pattern.values()]) < 1:
            raise ConfigError(f"backbone.lora.rank is {self.rank} and rank_pattern {self.rank_pattern}; a rank is at least 1.")
        if self.plus <= 0:
            raise ConfigError(f"backbone.lora.plus is {self.plus}; it is above 0.")
        if self.dropout:
            raise ConfigError(
                f"backbone.lora.dropout is {self.dropout}; leave it at 0: with dropout, the probabilities of an update would not be those that the "
                "completion was sampled with."
            )
        if self.init != "default":
            raise ConfigError(
                f"backbone.lora.init is {self.init!r}, which changes the weights under the adapter: switched off it would not give the reference "
                "model, and a saved adapter would not fit its checkpoint; leave it at default."
            )
        if self.modules_to_save:
            raise ConfigError(
                f"backbone.lora.modules_to_save is {self.modules_to_save}; modules that train beside the adapters would change the reference model, "
                "which is this model with its adapters off. Leave it out, or train all weights (lora: null)."
            )


def add_adapters(model: Any, lora: LoRA, linears: Sequence[str]) -> Any:
    """The model with adapters on those of ``linears`` (full names) that the settings choose.

    Raises:
        ConfigError: a target is no linear layer of the language model.
    """
    from peft import LoraConfig, get_peft_model

    known = sorted({n.rsplit(".", 1)[-1] for n in linears})
    for key in ("targets", "rank_pattern", "alpha_pattern"):
        for target in getattr(lora, key) or ():
            if target not in known:
                close = difflib.get_close_matches(target, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ConfigError(
                    f"backbone.lora.{key} names {target!r}, which is no linear layer; the language model has {', '.join(known)}.{hint}"
                )
    names = [n for n in linears if lora.targets is None or n.rsplit(".", 1)[-1] in lora.targets]
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=names, use_dora=lora.dora, use_rslora=lora.rslora,
        rank_pattern=lora.rank_pattern, alpha_pattern=lora.alpha_pattern,
    )  # fmt: skip
    wrapped = get_peft_model(model, config)
    _compute_in_type_of_input(wrapped)
    trainable = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    kinds = sorted({n.rsplit(".", 1)[-1] for n in names})
    log.info(
        "%s r=%d on %d layers of the language model (%s): %.1f M parameters.",
        "DoRA" if lora.dora else "LoRA", lora.rank, len(names), ", ".join(kinds), trainable / 1e6,
    )  # fmt: skip
    return wrapped


class _OneProduct(Retyped):
    """A peft layer that adds its adapter to the base product within one further product, rounded once. peft multiplies, scales and adds one
    after the other, each time in a tensor as large as the output. What is not plain LoRA is left to peft."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See the class that is replaced."""
        layer: Any = self
        adapter = plain_adapter(layer)
        if adapter is None or layer.disable_adapters or layer.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        rows = x.flatten(0, -2)  # a product of rows is no view, so that it can be added to in place
        low, B_RO = layer.lora_A[adapter](rows), layer.lora_B[adapter].weight.t()
        return add_product(layer.base_layer(rows), low, B_RO, layer.scaling[adapter]).unflatten(0, x.shape[:-1])


def add_product(out_NO: Tensor, low_NR: Tensor, B_RO: Tensor, scale: float) -> Tensor:
    """``out + scale * low @ B``, in place and rounded once, in the type of ``out``: under autocast the factors may be of another."""
    return out_NO.addmm_(low_NR.to(out_NO.dtype), B_RO.to(out_NO.dtype), alpha=scale)


def plain_adapter(layer: Any) -> str | None:
    """The name of a peft layer's adapter where it has one, of plain LoRA."""
    return layer.active_adapters[0] if len(layer.active_adapters) == 1 and not layer.lora_variant and layer.lora_A else None


class _InTypeOfInput(nn.Linear):
    """A linear layer without bias whose weight is multiplied in the type of its input. The weight stays as it is, float32 beside a 16-bit
    model, and so does its gradient."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


def _compute_in_type_of_input(model: Any) -> None:
    """Let adapters multiply in the model's own type, with as few passes over the output as there can be. peft would cast 16-bit activations to
    float32 first, whose products take many times as long on a GPU."""
    for _, _, layer in adapted_layers(model):
        layer.cast_input_dtype_enabled = False
        for matrices in (layer.lora_A, layer.lora_B):
            for name, matrix in list(matrices.items()):
                matrices[name] = _InTypeOfInput(matrix.in_features, matrix.out_features, bias=False, device="meta")
                matrices[name].weight = matrix.weight
        retype(layer, _OneProduct)


def adapted_layers(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """(parent, name, layer) of every layer with an adapter."""
    from peft.tuners.lora import Linear, LoraLayer

    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, LoraLayer) and (isinstance(child, Linear) or hasattr(child.get_base_layer(), "quant_state"))
    ]


@contextmanager
def noisy_adapters(model: nn.Module, scale: float) -> Iterator[None]:
    """While the context lasts, the B matrices hold noise of this standard deviation, the same every time. They are restored bit for bit."""
    generator = torch.Generator().manual_seed(0)
    matrices = [matrix.weight for _, _, layer in adapted_layers(model) for matrix in layer.lora_B.values()]
    before = [weight.detach().clone() for weight in matrices]
    try:
        with torch.no_grad():
            for weight in matrices:
                weight.copy_(scale * torch.randn(weight.shape, generator=generator, device="cpu"))
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(matrices, before, strict=True):
                weight.copy_(old)
