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
    """While the context lasts, layers multiply with copies of their weights in ``dtype`` that their adapter is added to: all layers with an
    adapter, and all others with 4-bit weights."""

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
        replacements += _copied(_without_adapter(model), dtype)
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
    plain = [place for row in adapted_layers(model) if plain_adapter((place := _Place(*row)).layer)]
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
            replacements += _copied(_without_adapter(model), dtype)
    with _replaced(replacements):
        yield


def merged_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the copies that :func:`merged_adapters` makes; 0 where there is no adapter."""
    adapted = [_Place(*row) for row in adapted_layers(model)]
    return _numbers([*adapted, *_without_adapter(model)]) * dtype.itemsize if adapted else 0


def dequantised_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the copies that ``fused_adapters(dequantize=True)`` makes, adapters included; 0 where no layer has 4-bit weights."""
    plain = [place for row in adapted_layers(model) if plain_adapter((place := _Place(*row)).layer) and _is_quantised(place.base)]
    adapters = 0
    for places in _by_input(plain):
        adapters += _LowRank.numbers(places)
    return (_numbers([*plain, *_without_adapter(model)]) + adapters) * dtype.itemsize


def _numbers(places: Iterable[_Place]) -> int:
    return sum(place.base.in_features * place.base.out_features for place in places)


# ---- which layers ----------------------------------------------------------------------------------------------------


def _is_quantised(layer: Any) -> bool:
    return hasattr(layer, "quant_state")


def _without_adapter(model: nn.Module) -> list[_Place]:
    """Every layer with 4-bit weights and without an adapter."""
    under = {id(module) for _, _, layer in adapted_layers(model) for module in layer.modules()}
    named = ((parent, name, child) for parent in model.modules() for name, child in parent.named_children())
    return [_Place(parent, name, child) for parent, name, child in named if _is_quantised(child) and id(child) not in under]


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


def _copied(places: Sequence[_Place], dtype: torch.dtype) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replacements for layers without an adapter by copies of their weights."""
    return [replacement for group in _by_input(places) for replacement in _parts(group, _Copies(group, _plain_weight, dtype).product)]


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
        self.places, self.dtype = places, dtype
        self.adapters = [(place.layer, place.layer.active_adapters[0]) for place in places]
        self.A = torch.cat([layer.lora_A[adapter].weight.to(dtype) for layer, adapter in self.adapters])
        self.scales = [float(layer.scaling[adapter]) for layer, adapter in self.adapters]

    def _b_matrices(self) -> list[Tensor]:
        """(outputs, rank) of every layer; made where they are used, so that none is kept beside a block of all of them."""
        return [layer.lora_B[adapter].weight.to(self.dtype) for layer, adapter in self.adapters]

    @staticmethod
    def numbers(places: Sequence[_Place]) -> int:
        """Numbers of the matrices that :meth:`added_to` multiplies with: A, and B as a block or one by one."""
        adapters = [(place.layer, place.layer.active_adapters[0]) for place in places]
        ranks = [layer.lora_A[adapter].out_features for layer, adapter in adapters]
        outputs = [place.base.out_features for place in places]
        one_block = len({float(layer.scaling[adapter]) for layer, adapter in adapters}) == 1
        blocks = sum(ranks) * sum(outputs) if one_block else sum(r * o for r, o in zip(ranks, outputs, strict=True))
        return sum(ranks) * int(places[0].base.in_features) + blocks

    def low(self, x: Tensor) -> Tensor:
        """(..., inputs) to (rows, ranks of all layers)."""
        return F.linear(x.flatten(0, -2), self.A)

    def layers(self) -> list[tuple[nn.Module, str, nn.Module]]:
        """Replacements for the layers, each with its own base and B products."""
        once, start = _Once(self.low, len(self.places)), 0
        replacements: list[tuple[nn.Module, str, nn.Module]] = []
        for place, B, scale in zip(self.places, self._b_matrices(), self.scales, strict=True):
            ranks = slice(start, start := start + B.shape[1])
            replacements.append((place.parent, place.name, _FusedLinear(place.base, once, ranks, B.t(), scale)))
        return replacements

    def added_to(self, base: Product) -> Product:
        """The base product of all the layers with all their adapters; in one product where their scales are the same."""
        if len(set(self.scales)) == 1:
            parts = [(slice(None), slice(None), torch.block_diag(*self._b_matrices()).t(), self.scales[0])]
        else:
            parts, out, rank = [], 0, 0
            for B, scale in zip(self._b_matrices(), self.scales, strict=True):
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
