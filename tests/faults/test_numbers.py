"""Gradients and weights that are not finite: skipped, counted, named, and never saved over good ones."""

from __future__ import annotations

import json
import math
import sys
import types

import pytest
import torch

from locus_lightning.objectives.grpo import GRPO
from tests.faults.conftest import RUN, checkpoint, weights


class Broken(GRPO):
    """Gives NaN in the calls of ``bad``; two calls are a step."""

    bad: range = range(0)
    calls = 0

    def __call__(self, *arguments, **more):
        loss, figures = super().__call__(*arguments, **more)
        Broken.calls += 1
        return (loss * math.nan if Broken.calls - 1 in Broken.bad else loss), figures


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setitem(sys.modules, "broken", types.SimpleNamespace(Broken=Broken))
    monkeypatch.setattr(Broken, "__module__", "broken")

    def arm(bad):
        Broken.bad, Broken.calls = bad, 0
        return [*RUN, "--model.objective=broken.Broken"]

    return arm


def test_single_steps_are_skipped_and_counted(locus, tmp_path, broken, caplog):
    status, _, err = locus("fit", *broken(range(2, 6)))  # the second and the third step
    assert status == 0, err
    summary = json.loads((checkpoint(tmp_path, "locus").parents[1] / "summary.json").read_text())
    assert summary["skipped_steps"] == 2
    said = [r.getMessage() for r in caplog.records if "the step is skipped" in r.getMessage()]
    assert len(said) == 2
    assert "samples scene-train-0-" in said[0]


def test_too_many_in_a_row_stop_the_run_with_the_good_state_saved(locus, tmp_path, broken):
    status, _, err = locus("fit", *broken(range(2, 100)))
    assert status == 2
    assert "the gradients of 3 steps in a row were not finite, and the weights are still finite" in err
    assert "The samples were scene-train-0-" in err
    assert "Traceback" not in err
    folder = checkpoint(tmp_path, "locus").parents[1]
    assert not (folder / "model").exists()
    saved = torch.load(checkpoint(tmp_path, "locus"), weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in saved["state_dict"].values())
    status, _, err = locus("fit", *broken(range(0)), "--ckpt_path=last")
    assert status == 0, err


def poison(trainer, module):
    with torch.no_grad():
        next(p for n, p in module.backbone.named_parameters() if p.requires_grad and n.endswith("norm.weight")).view(-1)[0] = math.nan


def poison_the_unused(trainer, module):
    with torch.no_grad():
        module.backbone.hf.get_input_embeddings().weight[-1, -1] = math.nan


def test_broken_weights_that_no_step_meets_end_no_run_as_a_success(locus, tmp_path, inject):
    status, _, err = locus("fit", *RUN, inject("step end", 3, poison_the_unused))
    assert status == 2
    assert "is not finite; continue from an earlier checkpoint" in err
    assert not (checkpoint(tmp_path, "locus").parents[1] / "model").exists()


def test_broken_weights_are_never_saved(locus, tmp_path, inject):
    status, _, err = locus("fit", *RUN, "--checkpoints.every_n_steps=1", inject("step end", 3, poison))
    assert status == 2
    assert "the weights themselves are not finite (" in err
    saved = torch.load(checkpoint(tmp_path, "locus"), weights_only=True)
    assert saved["global_step"] in (2, 3)
    for file in ("last", "previous-1"):
        assert all(bool(torch.isfinite(v).all()) for v in weights(checkpoint(tmp_path, "locus", file)).values())
