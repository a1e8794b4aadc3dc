"""Fused kernels as an option: held to the plain ones, refused where they are missing, idle without a GPU."""

from __future__ import annotations

import importlib.util
import logging
import os
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
