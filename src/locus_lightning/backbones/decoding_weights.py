"""What a model's linear layers multiply with while completions are decoded: adapters merged or in the model's own type, 4-bit weights as they
are or as a copy, and one product for layers that read the same input. Everything is restored afterwards, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
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
        return _base(self.layer)


@contextmanager
def merged_adapters(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """While the context lasts, layers multiply with copies of their weights in ``dtype`` that their adapter is added to: all layers with an
    adapter, and all others with 4-bit weights."""

    def merged(layer: Any) -> Tensor:
        weight = _plain_weight(layer)
        for adapter in layer.active_adapters:
            variant = layer.lora_variant.get(adapter)
            weight = weight + layer.get_delta_weight(adapter) if variant is None else variant.merge_safe(layer, adapter, weight.clone())
        return weight

    with torch.no_grad():
        replacements = _copied([_Place(*row) for row in adapted_layers(model)], merged, dtype)
        replacements += _copied(_without_adapter(model), _plain_weight, dtype)
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
    replacements: list[tuple[nn.Module, str, nn.Module]] = []
    with torch.no_grad():
        for places in _by_input(_with_plain_adapter(model)):
            low_rank = _LowRank(places, dtype)
            if dequantize and _are_quantised(places):
                replacements += _parts(places, low_rank.added_to(_Copies(places, _plain_weight, dtype).product))
            else:
                replacements += low_rank.layers()
        if dequantize:
            replacements += _copied(_without_adapter(model), _plain_weight, dtype)
    with _replaced(replacements):
        yield


def merged_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the copies that :func:`merged_adapters` makes; 0 where there is no adapter."""
    adapted = [_Place(*row) for row in adapted_layers(model)]
    return _numbers([*adapted, *_without_adapter(model)]) * dtype.itemsize if adapted else 0


def dequantised_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes of the copies that ``fused_adapters(dequantize=True)`` makes, adapters included; 0 where no layer has 4-bit weights."""
    together = [places for places in _by_input(_with_plain_adapter(model)) if _are_quantised(places)]
    adapted = sum(_numbers(places) + _LowRank(places, dtype).numbers() for places in together)
    return (adapted + _numbers(_without_adapter(model))) * dtype.itemsize


def _numbers(places: Sequence[_Place]) -> int:
    return sum(place.base.in_features * place.base.out_features for place in places)


# ---- which layers ----------------------------------------------------------------------------------------------------


def _base(layer: Any) -> Any:
    """A linear layer, without its adapter if it has one."""
    return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def _is_quantised(layer: Any) -> bool:
    return hasattr(layer, "quant_state")


def _are_quantised(places: Sequence[_Place]) -> bool:
    return all(_is_quantised(place.base) for place in places)


def _with_plain_adapter(model: nn.Module) -> list[_Place]:
    """Every layer with one adapter, of plain LoRA."""
    return [_Place(*row) for row in adapted_layers(model) if plain_adapter(row[2])]


def _without_adapter(model: nn.Module) -> list[_Place]:
    """Every layer with 4-bit weights and without an adapter."""
    under = {id(module) for _, _, layer in adapted_layers(model) for module in layer.modules()}
    named = ((parent, name, child) for parent in model.modules() for name, child in parent.named_children())
    return [_Place(parent, name, child) for parent, name, child in named if _is_quantised(child) and id(child) not in under]


def _plain_weight(layer: Any) -> Tensor:
    """A linear layer's weight as it is multiplied with, (outputs, inputs), its adapter left out."""
    base = _base(layer)
    if not _is_quantised(base):
        return base.weight  # type: ignore[no-any-return]
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(base)  # type: ignore[no-any-return]


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
    once, outputs = _Once(product, len(places)), _slices([place.base.out_features for place in places])
    return [(place.parent, place.name, _Part(once, own)) for place, own in zip(places, outputs, strict=True)]


def _slices(sizes: Sequence[int]) -> list[slice]:
    """Slices of these sizes, one after the other."""
    return [slice(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]


def _copied(places: Sequence[_Place], weight_of: Callable[[Any], Tensor], dtype: torch.dtype) -> list[tuple[nn.Module, str, nn.Module]]:
    """Replacements for layers by copies of their weights."""
    return [replacement for group in _by_input(places) for replacement in _parts(group, _Copies(group, weight_of, dtype).product)]


class _Copies:
    """Copies of the weights of layers that read the same input, one below the other, so that one product serves them all.

    Args:
        places: the layers.
        weight_of: gives a layer's weight, (outputs, inputs), in any type.
        dtype: of the copies.
    """

    def __init__(self, places: Sequence[_Place], weight_of: Callable[[Any], Tensor], dtype: torch.dtype) -> None:
        bases = [place.base for place in places]
        device = next(bases[0].parameters()).device
        self.weight = torch.empty(sum(b.out_features for b in bases), bases[0].in_features, dtype=dtype, device=device)
        self.bias = self.weight.new_zeros(len(self.weight)) if any(base.bias is not None for base in bases) else None
        for place, base, rows in zip(places, bases, _slices([base.out_features for base in bases]), strict=True):
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
        self.scales = [float(layer.scaling[adapter]) for layer, adapter in self.adapters]
        self.ranks = [layer.lora_A[adapter].out_features for layer, adapter in self.adapters]
        self.outputs = [place.base.out_features for place in places]
        self.one_block = len(set(self.scales)) == 1

    def numbers(self) -> int:
        """Numbers of the matrices that :meth:`added_to` multiplies with: A, and B as a block or one by one."""
        each = sum(rank * outputs for rank, outputs in zip(self.ranks, self.outputs, strict=True))
        return sum(self.ranks) * int(self.places[0].base.in_features) + (sum(self.ranks) * sum(self.outputs) if self.one_block else each)

    def _low(self) -> Product:
        """(..., inputs) to (rows, ranks of all layers)."""
        A = torch.cat([layer.lora_A[adapter].weight.to(self.dtype) for layer, adapter in self.adapters])
        return lambda x: F.linear(x.flatten(0, -2), A)

    def _b_matrices(self) -> list[Tensor]:
        """(outputs, rank) of every layer."""
        return [layer.lora_B[adapter].weight.to(self.dtype) for layer, adapter in self.adapters]

    def layers(self) -> list[tuple[nn.Module, str, nn.Module]]:
        """Replacements for the layers, each with its own base and B products."""
        once = _Once(self._low(), len(self.places))
        rows = zip(self.places, _slices(self.ranks), self._b_matrices(), self.scales, strict=True)
        return [(place.parent, place.name, _FusedLinear(place.base, once, own, B.t(), scale)) for place, own, B, scale in rows]

    def added_to(self, base: Product) -> Product:
        """The base product of all the layers with all their adapters; in one product where their scales are the same."""
        low_of = self._low()
        if self.one_block:
            parts = [(slice(None), slice(None), torch.block_diag(*self._b_matrices()).t(), self.scales[0])]
        else:
            rows = zip(_slices(self.outputs), _slices(self.ranks), self._b_matrices(), self.scales, strict=True)
            parts = [(outputs, ranks, B.t(), scale) for outputs, ranks, B, scale in rows]

        def product(x: Tensor) -> Tensor:
            low, out = low_of(x), base(x.flatten(0, -2))
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
