"""Fused kernels in place of many small ones, so that a GPU launches less: norms by torch's own, wherever that rounds as transformers does; and
on request norms, gated layers and rotary embeddings by liger-kernel's (Triton).

What a module computes is found out on small random numbers, not taken from its name. A module whose formula is not known here stays as it
is, and so does any input that the kernels do not take (another device, float64).
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locus_lightning.backbones.retyped import Retyped, retype
from locus_lightning.errors import ConfigError

log = logging.getLogger(__name__)

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_TOLERANCE = 1e-4
"""Float32 sums of few terms agree to about 1e-6; formulas that differ, by 0.1 and more."""


def check_installed() -> None:
    """Refuse kernels that are not there.

    Raises:
        ConfigError: liger-kernel is not installed.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        raise ConfigError(
            "backbone.kernels is liger, which is not installed; pip install 'locus-lightning[gpu]' or set backbone.kernels: null."
        )


def fuse_norms(model: nn.Module) -> int:
    """Let norms compute with ``torch.nn.functional.rms_norm``, one kernel on a GPU in place of six, where this rounds as the model's own code
    does; gives how many."""
    with _float32_on_cpu():
        chosen = [module for module in model.modules() if _fused_norm(module) is _Norm and _rounds_as_torch(module)]
    for module in chosen:
        retype(module, _TorchNorm)
    return len(chosen)


def fuse(model: nn.Module) -> Counter[str]:
    """Let the modules of a model compute with fused kernels wherever their formula is known; gives how many of each kind.

    A norm and a gated layer become instances of a subclass of their own class, so that names, weights and copies stay what they are. A
    rotary embedding is a function of transformers' module for the family, and is replaced there for all models of this process.
    """
    if not (torch.cuda.is_available() or _interpreted()):
        log.warning("backbone.kernels is liger, whose kernels need a GPU; on this machine the plain ones run.")
        return Counter()
    counts: Counter[str] = Counter()
    with _float32_on_cpu():
        for module in list(model.modules()):
            for kind, fused in (("norms", _fused_norm(module)), ("gated layers", _fused_gated(module))):
                if fused is not None:
                    retype(module, fused)
                    counts[kind] += 1
            counts["rotary embeddings"] += _fuse_rotary(module)
    log.info("liger kernels: %s.", ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    return counts


def _interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on any device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _takes(x: Tensor) -> bool:
    return (x.is_cuda or _interpreted()) and x.dtype in _TYPES and x.numel() > 0


@contextmanager
def _float32_on_cpu() -> Iterator[None]:
    """Small numbers are made there in that type, whatever Lightning has made the default while a model is loaded."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _agree(compute: Callable[[], Tensor], expected: Tensor) -> bool:
    """Whether it gives these numbers. What cannot be computed from such an input does not."""
    try:
        with torch.no_grad():
            out = compute()
    except Exception:
        return False
    return isinstance(out, Tensor) and out.shape == expected.shape and torch.allclose(out, expected, atol=_TOLERANCE, rtol=_TOLERANCE)


# ---- norms -----------------------------------------------------------------------------------------------------------


class _Norm(Retyped):
    """Root mean square norm. llama multiplies by the weight in the input's type, gemma by 1 + weight in float32."""

    offset, casting = 0.0, "llama"

    def forward(self, x: Tensor) -> Tensor:
        """See the class that is replaced."""
        if not _takes(x):
            return super().forward(x)  # type: ignore[misc, no-any-return]
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        in_place = False  # the gradient that arrives may be another branch's too
        return LigerRMSNormFunction.apply(x, self.weight, _eps(self), self.offset, self.casting, in_place)  # type: ignore[no-any-return]


class _OffsetNorm(_Norm):
    offset, casting = 1.0, "gemma"


class _TorchNorm(Retyped):
    """Root mean square norm of torch. The unit vector is rounded to the input's type before it is multiplied by the weight, as in llama."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class that is replaced."""
        if x.dtype not in _TYPES:
            return super().forward(x)  # type: ignore[misc, no-any-return] # which computes in float32 all the same
        return self.weight * _unit(x, _eps(self))  # type: ignore[operator, no-any-return]


def _unit(x: Tensor, eps: float) -> Tensor:
    """The unit vector in the type of ``x``. Autocast would take 16-bit numbers to float32 and back around the kernel, which sums in float32
    anyway."""
    if not torch.is_autocast_enabled(x.device.type):
        return F.rms_norm(x, (x.shape[-1],), None, eps)
    with torch.autocast(x.device.type, enabled=False):
        return F.rms_norm(x, (x.shape[-1],), None, eps)


def _rounds_as_torch(norm: nn.Module) -> bool:
    """Whether a norm of 16-bit numbers agrees with :class:`_TorchNorm` to the bit nearly everywhere. The two sum in different orders, which
    moves few numbers across a rounding; another place of rounding moves a quarter of them."""
    width = len(norm.weight)  # type: ignore[arg-type]
    x, numbers = _random(8, width).bfloat16(), _random(width).bfloat16()
    stand_in = copy.copy(norm)
    stand_in.__dict__["_parameters"] = {"weight": nn.Parameter(numbers)}
    with torch.no_grad():
        return bool((stand_in(x) == numbers * _unit(x, _eps(norm))).float().mean() > 0.95)


def _eps(norm: Any) -> float:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))  # type: ignore[no-any-return]


def _fused_norm(module: nn.Module) -> type[_Norm] | None:
    weight = getattr(module, "weight", None)
    if (
        isinstance(module, (_Norm, _TorchNorm))
        or not type(module).__name__.endswith("RMSNorm")
        or not isinstance(weight, Tensor)
        or weight.ndim != 1
        or not isinstance(getattr(module, "variance_epsilon", getattr(module, "eps", None)), float)
    ):
        return None
    width = len(weight)
    stand_in, numbers = copy.copy(module), _random(width)
    stand_in.__dict__["_parameters"] = {"weight": nn.Parameter(numbers)}
    x = _random(3, width) * torch.tensor([[1.0], [0.01], [100.0]])  # eps counts in the second row
    unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _eps(module))
    for offset, fused in ((0.0, _Norm), (1.0, _OffsetNorm)):
        if _agree(lambda: stand_in(x), unit * (offset + numbers)):
            return fused
    return None


# ---- gated layers ----------------------------------------------------------------------------------------------------


class _SiLUGated(Retyped):
    """``down_proj(silu(gate_proj(x)) * up_proj(x))``."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class that is replaced."""
        if not _takes(x):
            return super().forward(x)  # type: ignore[misc, no-any-return]
        return self.down_proj(self.product(self.gate_proj(x), self.up_proj(x)))  # type: ignore[operator, no-any-return]

    @staticmethod
    def product(gate: Tensor, up: Tensor) -> Tensor:
        """The fused part."""
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return LigerSiLUMulFunction.apply(gate, up)  # type: ignore[no-any-return]


class _GELUGated(_SiLUGated):
    """Likewise with GELU by its tanh formula."""

    @staticmethod
    def product(gate: Tensor, up: Tensor) -> Tensor:
        """The fused part."""
        from liger_kernel.ops.geglu import LigerGELUMulFunction

        return LigerGELUMulFunction.apply(gate, up)  # type: ignore[no-any-return]


def _fused_gated(module: nn.Module) -> type[_SiLUGated] | None:
    names = ("gate_proj", "up_proj", "down_proj")
    if isinstance(module, _SiLUGated) or not all(isinstance(getattr(module, name, None), nn.Module) for name in names):
        return None
    stand_in, small = copy.copy(module), {name: nn.Linear(4, 4, bias=False) for name in names}
    for k, layer in enumerate(small.values()):
        layer.weight.data = _random(3, 4, 4)[k]
    stand_in.__dict__["_modules"] = {**module._modules, **small}
    x = 3 * _random(5, 4)
    gate, up = small["gate_proj"](x), small["up_proj"](x)
    for act, fused in ((F.silu, _SiLUGated), (lambda g: F.gelu(g, approximate="tanh"), _GELUGated)):
        if _agree(lambda: stand_in(x), small["down_proj"](act(gate) * up)):
            return fused
    return None


# ---- rotary embeddings -----------------------------------------------------------------------------------------------


class _Rotary:
    """A family's ``apply_rotary_pos_emb`` in one kernel, on inputs that it takes.

    Args:
        plain: transformers' own function.
    """

    def __init__(self, plain: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.plain = plain

    def __call__(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *further: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        whole = cos.ndim == 3 and cos.shape[-1] == q.shape[-1] == k.shape[-1] and cos.shape[0] in (1, q.shape[0])
        if further or settings or not whole or not _takes(q) or q.dtype != k.dtype:
            return self.plain(q, k, cos, sin, *further, **settings)
        from liger_kernel.ops.rope import LigerRopeFunction

        return LigerRopeFunction.apply(_by_place(q), _by_place(k), cos, sin)  # type: ignore[no-any-return]


def _by_place(x_BHSD: Tensor) -> Tensor:
    """The same numbers, stored place by place: the kernel takes its step from place to place from the strides, and torch calls a tensor of
    one place contiguous whatever its stride there is."""
    return x_BHSD.transpose(1, 2).flatten(2).unflatten(2, (x_BHSD.shape[1], x_BHSD.shape[3])).transpose(1, 2)


def _fuse_rotary(module: nn.Module) -> int:
    """1 where a module's family rotates by halves, and does so with the kernel from now on."""
    home = sys.modules.get(type(module).__module__)
    plain = getattr(home, "apply_rotary_pos_emb", None)
    if plain is None or not hasattr(module, "q_proj"):
        return 0
    if not isinstance(plain, _Rotary):
        q, k, angles = _random(1, 2, 3, 8), _random(1, 1, 3, 8), _random(1, 3, 4).repeat(1, 1, 2)
        cos, sin = angles.cos(), angles.sin()
        rotated = [x * cos[:, None] + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin[:, None] for x in (q, k)]
        if not all(_agree(lambda i=i: plain(q, k, cos, sin)[i], rotated[i]) for i in range(2)):  # type: ignore[misc]
            return 0
        home.apply_rotary_pos_emb = _Rotary(plain)  # type: ignore[union-attr]
    return 1
