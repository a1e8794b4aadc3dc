"""The fused kernels against what they replace, on a CPU: Triton's interpreter runs them. ``test_kernels.py`` starts this in a process of its
own, because the interpreter has to be asked for before Triton is imported."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("run tests/unit/backbones/test_kernels.py, which starts this with Triton's interpreter.")

import liger_kernel.ops.geglu
import liger_kernel.ops.rms_norm
import triton
import triton.language as tl
from triton.runtime import interpreter

from locus_lightning.backbones import kernels
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.types import Prompt
from tests.conftest import FAMILIES, make_backbone  # noqa: F401

EXPECTED = {
    "aya_vision": {"gated layers"},  # its norms subtract the mean, its heads rotate pairs
    "glm4v": {"norms", "gated layers"},  # its heads rotate pairs
    "qwen3_vl_moe": {"norms", "rotary embeddings"},  # its gated layers are experts
}


@triton.jit
def _rsqrt(x):
    return 1.0 / tl.sqrt(x)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@pytest.fixture(autouse=True)
def functions_of_the_gpu(monkeypatch):
    """What the interpreter lacks: numbers as arguments, and functions of CUDA's own library."""
    convert = interpreter._implicit_cvt

    def with_floats(arg):
        if not isinstance(arg, float):
            return convert(arg)
        return tl.tensor(interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", with_floats)
    monkeypatch.setattr(liger_kernel.ops.rms_norm, "rsqrt", _rsqrt)
    monkeypatch.setattr(liger_kernel.ops.geglu, "tanh", _tanh)


@pytest.fixture
def used(monkeypatch):
    """How often each of the library's functions ran."""
    counts = dict.fromkeys(
        ("rms_norm.LigerRMSNormFunction", "swiglu.LigerSiLUMulFunction", "geglu.LigerGELUMulFunction", "rope.LigerRopeFunction"), 0
    )
    for name in counts:
        module, function = name.split(".")
        home = __import__(f"liger_kernel.ops.{module}", fromlist=[function])
        plain = getattr(home, function).forward

        def counted(*args, name=name, plain=plain):
            counts[name] += 1
            return plain(*args)

        monkeypatch.setattr(getattr(home, function), "forward", staticmethod(counted))
    return counts


@pytest.fixture(autouse=True)
def plain_rotary_afterwards():
    """Give transformers' modules their own functions back."""
    yield
    for module in list(sys.modules.values()):
        replaced = getattr(module, "apply_rotary_pos_emb", None)
        if isinstance(replaced, kernels._Rotary):
            module.apply_rotary_pos_emb = replaced.plain


def own_class(module):
    """The class of transformers that a module was made from."""
    return next(kind for kind in type(module).__mro__ if kind.__module__.startswith("transformers"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_module_gives_what_the_plain_one_gives(family, make_backbone):  # noqa: F811
    """Outputs, and gradients of inputs and weights, of one module of every class and width."""
    backbone = make_backbone(family, kernels="liger")
    fused = [m for m in backbone.hf.modules() if isinstance(m, (kernels._Norm, kernels._SiLUGated))]
    one_each = {(type(m).__name__, next(m.parameters()).shape): m for m in fused}
    kinds = {"norms" if isinstance(m, kernels._Norm) else "gated layers" for m in fused}
    kinds |= {"rotary embeddings"} if any(_home_is_fused(m) for m in backbone.hf.modules()) else set()
    assert kinds == EXPECTED.get(family, {"norms", "gated layers", "rotary embeddings"})
    for module in one_each.values():
        torch.manual_seed(1)
        width = len(module.weight) if isinstance(module, kernels._Norm) else module.gate_proj.in_features
        if isinstance(module, kernels._Norm):
            module.weight.data += 0.3 * torch.randn(width)
        x, into = torch.randn(2, 3, width, requires_grad=True), torch.randn(2, 3, width)
        results = []
        for forward in (module.forward, lambda x, m=module: own_class(m).forward(m, x)):
            x.grad = None
            module.zero_grad()
            out = forward(x)
            out.backward(into[..., : out.shape[-1]] if out.shape[-1] <= width else torch.ones_like(out))
            trained = [p.grad.clone() for p in module.parameters() if p.grad is not None]
            results.append([out.detach(), x.grad.clone(), *trained])
        assert len(results[0]) == len(results[1])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=5e-6, rtol=1e-4)


def _home_is_fused(module):
    home = sys.modules[type(module).__module__]
    return hasattr(module, "q_proj") and isinstance(getattr(home, "apply_rotary_pos_emb", None), kernels._Rotary)


def words(backbone, number):
    """A prompt of some tokens and no picture."""
    ids_P = torch.randint(100, 200, (number,), generator=torch.Generator().manual_seed(number))
    rows = 3 if "qwen" in backbone.hf.config.model_type else 1
    return Prompt("", ids_P, torch.arange(number).expand(rows, -1), number, {}, features=())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_a_model_with_fused_kernels_is_the_same_policy(family, make_backbone, used):  # noqa: F811
    """Greedy tokens with adapters, log-probabilities and gradients, under gradient checkpointing. Words alone: a picture takes minutes."""
    results = []
    for name in (None, "liger"):
        backbone = make_backbone(family, lora=LoRA(4, 8), gradient_checkpointing=True, kernels=name)
        torch.manual_seed(2)
        for key, parameter in backbone.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.05)
        prompts = [words(backbone, 9), words(backbone, 5)]
        groups = HFRollout().generate(backbone, prompts, 2, SamplingParams(4, temperature=0.0))
        ids = [[made.ids_T for made in group] for group in groups]
        backbone.train(True)
        logps, _ = backbone.logps(prompts, ids)
        logps.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])
        results.append(([row.tolist() for group in ids for row in group], logps.detach(), gradient))
        assert any(used.values()) == bool(name)
    (ids, logps, gradient), (fused_ids, fused_logps, fused_gradient) = results
    assert ids == fused_ids
    torch.testing.assert_close(fused_logps, logps, atol=2e-5, rtol=0.0)
    assert gradient.norm() > 1e-3
    assert (fused_gradient - gradient).norm() < 1e-4 * gradient.norm()
    assert used["rope.LigerRopeFunction"] > 0
    assert used["geglu.LigerGELUMulFunction" if family == "gemma3" else "swiglu.LigerSiLUMulFunction"] > 0


@pytest.mark.parametrize(("heads", "places"), [(4, 1), (4, 5), (3, 4)])
@pytest.mark.parametrize("by_head", [True, False])
def test_rotary_embeddings_are_right_however_the_heads_are_stored(heads, places, by_head):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(0)
    stored = [torch.randn(2, h, places, 12) if by_head else torch.randn(2, places, h, 12).transpose(1, 2) for h in (heads, 2)]
    angles = torch.randn(2, places, 6).repeat(1, 1, 2)
    expected = apply_rotary_pos_emb(*stored, angles.cos(), angles.sin())
    fused = kernels._Rotary(apply_rotary_pos_emb)(
        *[x.clone(memory_format=torch.preserve_format) for x in stored], angles.cos(), angles.sin()
    )
    for one, other in zip(fused, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_double_precision_stays_with_the_plain_modules(make_backbone, used):  # noqa: F811
    backbone = make_backbone("llava", dtype="float64", kernels="liger")
    HFRollout().generate(backbone, [words(backbone, 5)], 2, SamplingParams(3))
    assert not any(used.values())


def test_a_formula_that_is_not_known_stays(make_backbone, monkeypatch):  # noqa: F811
    from transformers.models.llama import modeling_llama

    def other_norm(self, x):
        return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.variance_epsilon)

    def other_rotary(q, k, cos, sin, unsqueeze_dim=1):
        return q * cos[:, None], k * sin[:, None]

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", other_norm)
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, x: self.down_proj(self.gate_proj(x).relu() * self.up_proj(x)))
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", other_rotary)
    backbone = make_backbone("llava", kernels="liger")
    assert not [m for m in backbone.hf.modules() if isinstance(m, (kernels._Norm, kernels._SiLUGated))]
    assert modeling_llama.apply_rotary_pos_emb is other_rotary
