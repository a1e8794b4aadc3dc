"""What a model's linear layers multiply with while completions are decoded: adapters merged or in the model's own type, 4-bit weights as they
are or as a copy, and one product for layers that read the same input. Everything is restored afterwards, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locus_lightning.backbones.adapters import adapted_layers, add_product, plain_adapter

_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that read the same input in most decoders, so that one product serves them all."""


@dataclass(frozen=True)
class _Place:
    """A linear layer, with or without an adapter: ``parent.name`` is ``layer``."""

    parent: nn.Module
    name: str
    layer: Any

    @property
    def base(self) -> Any:
        """The linear layer itself."""
        return self.layer.get_base_layer() if hasattr(self.layer, "get_base_layer") else self.layer


@contextmanager
def merged_adapters(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """While the context lasts, layers with an adapter multiply with copies of their weights in ``dtype`` that the adapter is added to."""

    def merged(layer: Any) -> Tensor:
        weight = _plain_weight(layer.get_base_layer())
        for adapter in layer.active_adapters:
            variant = layer.lora_variant.get(adapter)
            weight = weight + layer.get_delta_weight(adapter) if variant is None else variant.merge_safe(layer, adapter, weight.clone())
        return weight

    with torch.no_grad():
        replacements = [
            replacement
            for places in _by_input([_Place(*row) for row in adapted_layers(model)])
            for replacement in _parts(places, _Copies(places, merged, dtype).product)
        ]
    with _replaced(replacements):
        yield


@contextmanager
def fused_adapters(model: nn.Module, dtype: torch.dtype, *, dequantize: bool = False) -> Iterator[None]:
    """While the context lasts, adapters act through copies in ``dtype``, with one A product for layers that read the same input. Adapters of
    another kind than plain LoRA stay as they are.

    Args:
        model: with adapters.
        dtype: of the model's activations.
        dequantize: Whether 4-bit layers multiply with copies in ``dtype``, which hold the very numbers that bitsandbytes multiplies with.
            Layers that read the same input then share all their products. Layers under adapters of another kind keep their 4 bits.
    """
    adapted = [_Place(*row) for row in adapted_layers(model)]
    plain = [place for place in adapted if plain_adapter(place.layer)]
    replacements: list[tuple[nn.Module, str, nn.Module]] = []
    with torch.no_grad():
        for places in _by_input(plain):
            low_rank = _LowRank(places, dtype)
            if dequantize and all(_is_quantised(place.base) for place in places):
                copies = _Copies(places, lambda layer: _plain_weight(layer.get_base_layer()), dtype)
                replacements += _parts(places, low_rank.added_to(copies.product))
            else:
                replacements += low_rank.layers()
        if dequantize:
            under_adapters = {id(module) for place in adapted for module in place.layer.modules()}
            for places in _by_input([place for place in _quantised(model) if id(place.layer) not in under_adapters]):
                replacements += _parts(places, _Copies(places, _plain_weight, dtype).product)
    with _replaced(replacements):
        yield


def merged_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the copies that :func:`merged_adapters` makes."""
    return _numbers(_Place(*row) for row in adapted_layers(model)) * dtype.itemsize


def dequantised_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the copies that ``fused_adapters(dequantize=True)`` makes; 0 where no layer has 4-bit weights."""
    adapted = [_Place(*row) for row in adapted_layers(model)]
    kept = {id(place.base) for place in adapted if not plain_adapter(place.layer)}
    return _numbers(place for place in _quantised(model) if id(place.layer) not in kept) * dtype.itemsize


def _numbers(places: Iterable[_Place]) -> int:
    return sum(place.base.in_features * place.base.out_features for place in places)


# ---- which layers ----------------------------------------------------------------------------------------------------


def _is_quantised(layer: Any) -> bool:
    return hasattr(layer, "quant_state")


def _quantised(model: nn.Module) -> list[_Place]:
    """Every layer with 4-bit weights; under an adapter, its base layer."""
    named = ((parent, name, child) for parent in model.modules() for name, child in parent.named_children())
    return [_Place(parent, name, child) for parent, name, child in named if _is_quantised(child)]


def _plain_weight(layer: Any) -> Tensor:
    """A linear layer's weight as it is multiplied with, (outputs, inputs)."""
    if not _is_quantised(layer):
        return layer.weight  # type: ignore[no-any-return]
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer)  # type: ignore[no-any-return]


def _by_input(places: Sequence[_Place]) -> list[list[_Place]]:
    """The layers, those together that read the same input."""
    groups: dict[tuple[int, tuple[str, ...]], list[_Place]] = {}
    for place in places:
        together = next((names for names in _SAME_INPUT if place.name in names), (place.name,))
        groups.setdefault((id(place.parent), together), []).append(place)
    return list(groups.values())


# ---- products --------------------------------------------------------------------------------------------------------

Product = Callable[[Tensor], Tensor]
"""(..., inputs) to (..., outputs)."""


class _Once:
    """A product for some layers: it is computed when the first of them meets an input, used by those that are given the same one, and let go
    when the last of them has used it, since a prompt's activations are large.

    Args:
        product: to compute.
        layers: how many use it.
    """

    def __init__(self, product: Product, layers: int) -> None:
        self.compute, self.layers = product, layers
        self.input: Tensor | None = None
        self.product: Tensor | None = None
        self.uses = 0

    def of(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.product is None or self.input is not x:
            self.input, self.product, self.uses = x, self.compute(x), 0
        product, self.uses = self.product, self.uses + 1
        if self.uses == self.layers:
            self.input = self.product = None
        return product


class _Part(nn.Module):
    """A layer whose outputs are some of a product's."""

    def __init__(self, once: _Once, outputs: slice) -> None:
        super().__init__()
        self.once, self.outputs = once, outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.once.of(x)[..., self.outputs]


def _parts(places: Sequence[_Place], product: Product) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replacements for layers that share a product; their outputs lie in it one after the other."""
    once = _Once(product, len(places))
    ends = [0]
    for place in places:
        ends.append(ends[-1] + place.base.out_features)
    return [
        (place.parent, place.name, _Part(once, slice(start, end))) for place, start, end in zip(places, ends[:-1], ends[1:], strict=True)
    ]


class _Copies:
    """Copies of the weights of layers that read the same input, one below the other, so that one product serves them all.

    Args:
        places: the layers.
        weight_of: gives a layer's weight, (outputs, inputs), in any type.
        dtype: of the copies.
    """

    def __init__(self, places: Sequence[_Place], weight_of: Callable[[Any], Tensor], dtype: torch.dtype) -> None:
        bases = [place.base for place in places]
        biases = [base.bias for base in bases]
        device = next(bases[0].parameters()).device
        self.weight = torch.empty(sum(b.out_features for b in bases), bases[0].in_features, dtype=dtype, device=device)
        self.bias = self.weight.new_zeros(len(self.weight)) if any(bias is not None for bias in biases) else None
        start = 0
        for place, base in zip(places, bases, strict=True):
            rows = slice(start, start := start + base.out_features)
            self.weight[rows] = weight_of(place.layer)
            if self.bias is not None and base.bias is not None:
                self.bias[rows] = base.bias

    def product(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs of all layers)."""
        return F.linear(x, self.weight, self.bias)


class _LowRank:
    """The adapters of layers that read the same input, in the model's own type. They are added to base products as in training, within one
    product, so that both round alike."""

    def __init__(self, places: Sequence[_Place], dtype: torch.dtype) -> None:
        self.places = places
        adapters = [(place.layer, place.layer.active_adapters[0]) for place in places]
        self.A = torch.cat([layer.lora_A[adapter].weight.to(dtype) for layer, adapter in adapters])
        self.Bs = [layer.lora_B[adapter].weight.to(dtype) for layer, adapter in adapters]
        self.scales = [float(layer.scaling[adapter]) for layer, adapter in adapters]

    def low(self, x: Tensor) -> Tensor:
        """(..., inputs) to (rows, ranks of all layers)."""
        return F.linear(x.flatten(0, -2), self.A)

    def layers(self) -> list[tuple[nn.Module, str, nn.Module]]:
        """Replacements for the layers, each with its own base and B products."""
        once, start = _Once(self.low, len(self.places)), 0
        replacements: list[tuple[nn.Module, str, nn.Module]] = []
        for place, B, scale in zip(self.places, self.Bs, self.scales, strict=True):
            ranks = slice(start, start := start + B.shape[1])
            replacements.append((place.parent, place.name, _FusedLinear(place.base, once, ranks, B.t(), scale)))
        return replacements

    def added_to(self, base: Product) -> Product:
        """The base product of all the layers with all their adapters; in one product where their scales are the same."""
        if len(set(self.scales)) == 1:
            parts = [(slice(None), slice(None), torch.block_diag(*self.Bs).t(), self.scales[0])]
        else:
            parts, out, rank = [], 0, 0
            for B, scale in zip(self.Bs, self.scales, strict=True):
                parts.append((slice(out, out := out + B.shape[0]), slice(rank, rank := rank + B.shape[1]), B.t(), scale))

        def product(x: Tensor) -> Tensor:
            low, out = self.low(x), base(x.flatten(0, -2))
            for outputs, ranks, B, scale in parts:
                add_product(out[:, outputs], low[:, ranks], B, scale)
            return out.unflatten(0, x.shape[:-1])

        return product


class _FusedLinear(nn.Module):
    """A linear layer and its adapter: the base product, to which a share of a common A product times B is added."""

    def __init__(self, base: nn.Module, low: _Once, ranks: slice, B: Tensor, scale: float) -> None:
        super().__init__()
        self.base, self.low, self.ranks, self.B, self.scale = base, low, ranks, B, scale

    def forward(self, x: Tensor) -> Tensor:
        low = self.low.of(x)
        return add_product(self.base(x.flatten(0, -2)), low[:, self.ranks], self.B, self.scale).unflatten(0, x.shape[:-1])


@contextmanager
def _replaced(replacements: Sequence[tuple[nn.Module, str, nn.Module]]) -> Iterator[None]:
    """While the context lasts, other modules stand in these places."""
    before = [(parent, name, getattr(parent, name)) for parent, name, _ in replacements]
    for parent, name, module in replacements:
        setattr(parent, name, module)
    try:
        yield
    finally:
        for parent, name, module in before:
            setattr(parent, name, module)
