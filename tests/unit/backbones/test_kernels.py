"""Fused kernels as an option: held to the plain ones, refused where they are missing, idle without a GPU."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from locus_lightning.backbones import kernels
from locus_lightning.errors import ConfigError
from tests.unit.backbones.rows import rollouts


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is for Linux")
def test_fused_kernels_compute_what_they_replace():
    """All of interpreted_kernels.py, in a process in which Triton interprets its kernels."""
    file = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stdout[-4000:]


def test_kernels_that_are_not_installed_are_refused_before_weights_load(make_backbone, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"backbone\.kernels is liger, which is not installed; pip install 'locus-lightning\[gpu\]'"):
        make_backbone("llava", kernels="liger")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_plain_modules_run_and_that_is_said(make_backbone, samples, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "check_installed", lambda: None)
    with caplog.at_level(logging.WARNING):
        backbone = make_backbone("llava", kernels="liger")
    assert "whose kernels need a GPU" in caplog.text
    assert not [m for m in backbone.hf.modules() if isinstance(m, (kernels._Norm, kernels._SiLUGated))]
    rollouts(backbone, samples[:1], n=2)


# ---- norms by torch's own kernel ---------------------------------------------------------------------------------------

PLAIN_NORMS = {"gemma3", "qwen3_5", "aya_vision"}
"""The norms of Gemma and Qwen3.5 multiply in float32, Cohere's subtracts the mean: torch's kernel rounds elsewhere."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_in_one_kernel_are_those_of_transformers_to_the_bit(make_backbone, family, dtype):
    backbone = make_backbone(family)
    norms = [module for module in backbone.hf.get_decoder().modules() if isinstance(module, kernels._TorchNorm)]
    assert bool(norms) is (family not in PLAIN_NORMS)
    for norm in norms[:4]:
        results = []
        for forward in (norm.forward, lambda x, norm=norm: type(norm).__bases__[1].forward(norm, x)):
            torch.manual_seed(0)
            norm.to(dtype).weight.requires_grad_().grad = None
            torch.nn.init.normal_(norm.weight)
            x = torch.randn(5, len(norm.weight)).to(dtype).requires_grad_()
            out = forward(x)
            (out * torch.randn_like(out)).sum().backward()
            results.append((out, x.grad, norm.weight.grad))
        one, other = results
        assert one[0].dtype == dtype
        assert (one[0] == other[0]).float().mean() > 0.95  # sums in another order move a number across a rounding
        eps = torch.finfo(dtype).eps
        assert all(torch.allclose(a, b, rtol=4 * eps, atol=4 * eps) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_are_fused_whatever_the_defaults_are_while_a_model_is_loaded(default):
    """Lightning makes the GPU the default device and, for bf16-true, bfloat16 the default type."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm, before = LlamaRMSNorm(32), torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            assert kernels.fuse_norms(norm) == 1
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(before)


def test_a_norm_without_a_stated_epsilon_is_left_alone():
    assert kernels.fuse_norms(torch.nn.RMSNorm(32)) == 0
    assert kernels.fuse_norms(torch.nn.RMSNorm(32, eps=1e-6)) <= 1


def test_under_autocast_a_fused_norm_is_one_kernel_and_a_product():
    """On tensors that say that they are a GPU's."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    names = []

    class Named(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    norm = LlamaRMSNorm(32).bfloat16()
    kernels.fuse_norms(norm)
    torch.set_autocast_enabled("cuda", True)
    try:
        with FakeTensorMode(), torch.no_grad():
            x = torch.empty(5, 32, device="cuda", dtype=torch.bfloat16)
            norm._parameters["weight"] = torch.nn.Parameter(torch.empty(32, device="cuda", dtype=torch.bfloat16))
            with Named():
                out = norm(x)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert names == ["_fused_rms_norm", "mul"]
    assert out.dtype == torch.bfloat16


def test_a_norm_that_rounds_elsewhere_is_left_alone():
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

    norms = torch.nn.ModuleList([LlamaRMSNorm(32), Gemma3RMSNorm(32), Olmo2RMSNorm(32), torch.nn.LayerNorm(32)])
    kinds = [type(norm) for norm in norms]
    assert kernels.fuse_norms(norms) == 1
    assert [type(norm) for norm in norms][1:] == kinds[1:]
    assert kernels.fuse_norms(norms) == 0, "what is fused stays as it is"


def test_a_fused_norm_is_copied_pickled_and_computes_in_float64_as_before():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(32)
    torch.nn.init.normal_(norm.weight)
    plain = copy.deepcopy(norm)
    assert kernels.fuse_norms(norm) == 1
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert isinstance(other, kernels._TorchNorm)
        assert isinstance(other, LlamaRMSNorm)
        assert torch.equal(other.weight, norm.weight)
        assert other.weight is not norm.weight
    x = torch.randn(3, 32, dtype=torch.float64)
    assert torch.equal(norm(x), plain(x))
