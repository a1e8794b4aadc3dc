"""Faults injected into real runs of the command line: what is lost, what is said, and whether the run can be continued to the same end."""

from __future__ import annotations

import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tests.integration.conftest import ROOT, locus, locus_process  # noqa: F401 - fixtures

SCENES = ROOT / "tests" / "configs" / "scenes_llava.yaml"

RUN = [
    "--config", SCENES, "--model.mask_truncated_completions=false", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e-3",
    "--trainer.accumulate_grad_batches=2", "--trainer.max_steps=6", "--trainer.val_check_interval=2", "--checkpoints.every_n_steps=0",
    "--model.warmup_ratio=0.0", "--data.source.init_args.train_size=40", "--trainer.num_sanity_val_steps=0",
]  # fmt: skip
"""A run of six steps whose weights move, with a validation after every second step; every rollout batch serves two steps."""


class Inject(L.Callback):
    """Does something at one point of training, once: ``hook`` says where, ``step`` after how many optimiser steps."""

    hook: str = ""
    step: int = 0
    action: Callable[..., Any] = staticmethod(lambda *_: None)
    done: bool = False

    def _at(self, hook: str, trainer: L.Trainer, module: Any, *subject: Any) -> None:
        if hook == Inject.hook and trainer.global_step == Inject.step and not Inject.done and not trainer.sanity_checking:
            Inject.done = True
            Inject.action(trainer, module, *subject)

    def on_rollout_start(self, trainer, pl_module, samples):
        self._at("rollout", trainer, pl_module, samples)

    def on_after_backward(self, trainer, pl_module):
        self._at("update", trainer, pl_module)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._at("validation", trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._at("step end", trainer, pl_module)


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Options of a run into which a fault is injected."""
    monkeypatch.setitem(sys.modules, "faults_inject", types.SimpleNamespace(Inject=Inject))
    monkeypatch.setattr(Inject, "__module__", "faults_inject")

    def arm(hook: str, step: int, action: Callable[..., Any]) -> str:
        Inject.hook, Inject.step, Inject.action, Inject.done = hook, step, staticmethod(action), False
        return "--trainer.callbacks=faults_inject.Inject"

    return arm


def send(*signums: int) -> Callable[..., None]:
    """Send signals to this process."""

    def action(*_: Any) -> None:
        for signum in signums:
            os.kill(os.getpid(), signum)
            signal.getsignal(signum)  # a Python call, at which a pending signal is delivered

    return action


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint."""
    return torch.load(path, weights_only=True)["state_dict"]


def checkpoint(root: Path, name: str, file: str = "last") -> Path:
    """A checkpoint of the first run under a logger's name."""
    return root / "runs" / name / "version_0" / "checkpoints" / f"{file}.ckpt"


def assert_same_end(one: Path, other: Path) -> None:
    """Both runs end with the same weights, bit for bit."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that nothing disturbs."""
    from locus_lightning.cli.main import main

    folder = tmp_path_factory.mktemp("whole")
    before, arguments = Path.cwd(), sys.argv
    os.chdir(folder)
    try:
        sys.argv = ["locus"]
        main(["fit", *map(str, RUN)])
    finally:
        os.chdir(before)
        sys.argv = arguments
    return checkpoint(folder, "locus")


def after_a_step(process: Any) -> tuple[list[str], int]:
    """What a run of two processes has said when its first step is done, and the process that it has started."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step "):
            break
    (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    return lines, child
