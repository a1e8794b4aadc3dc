"""A reward that fails, lies or hangs is named, its group left out, and nothing is lost."""

from __future__ import annotations

import math
import sys
import threading
import types

import pytest
import torch

from locus_lightning.rewards.base import Reward
from locus_lightning.training import scoring
from tests.faults.conftest import RUN, checkpoint

RELEASE = threading.Event()


class Odd(Reward):
    """Right for the first groups, then as ``fault`` has it for those of ``bad``."""

    fault = ""
    bad = range(0)
    calls = 0

    def score(self, completion, sample):
        return 0.0

    def score_group(self, completions, sample):
        Odd.calls += 1
        good = [float(i) for i in range(len(completions))]
        if Odd.calls - 1 not in Odd.bad:
            return good
        if Odd.fault == "hangs":
            RELEASE.wait(60)
        return {"raises": lambda: 1 / 0, "nan": lambda: [math.nan] * len(good), "inf": lambda: [math.inf, *good[1:]], "none": lambda: None,
                "string": lambda: ["good"] * len(good), "short": lambda: good[1:], "long": lambda: [*good, 1.0], "hangs": lambda: good,
                "shape": lambda: [torch.zeros(2)] * len(good)}[Odd.fault]()  # fmt: skip


class Tensors(Odd):
    def score_group(self, completions, sample):
        return torch.arange(len(completions))


@pytest.fixture
def odd(monkeypatch):
    monkeypatch.setitem(sys.modules, "odd", types.SimpleNamespace(Odd=Odd, Tensors=Tensors))
    for kind in (Odd, Tensors):
        monkeypatch.setattr(kind, "__module__", "odd")

    def arm(fault, bad, kind="Odd"):
        Odd.fault, Odd.bad, Odd.calls = fault, bad, 0
        RELEASE.clear()
        return [*RUN, "--trainer.limit_val_batches=0", "--model.num_iterations=1", f'--model.rewards=[{{"class_path": "odd.{kind}"}}]']

    yield arm
    RELEASE.set()


@pytest.mark.parametrize(("fault", "message"), [("raises", "ZeroDivisionError"), ("nan", "the score is nan"), ("none", "TypeError"),
                                                ("short", "1 scores for 2 completions"), ("shape", "which is no number")])  # fmt: skip
def test_one_bad_group_is_left_out_and_named(locus, tmp_path, odd, caplog, fault, message):
    status, _, err = locus("fit", *odd(fault, range(3, 4)))
    assert status == 0, err
    said = [r.getMessage() for r in caplog.records if "is left out" in r.getMessage()]
    assert len(said) == 1
    assert "the reward 'odd' (odd.Odd), sample scene-train-0-" in said[0]
    assert message in said[0]
    assert torch.load(checkpoint(tmp_path, "locus"), weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("fault", ["raises", "inf", "long"])
def test_too_many_bad_groups_stop_the_run_and_what_was_learned_is_saved(locus, tmp_path, odd, fault):
    status, _, err = locus("fit", *odd(fault, range(6, 100)), "--model.max_failed_groups=0.02")
    assert status == 2
    assert "the reward 'odd' (odd.Odd), sample scene-train-0-" in err
    assert "more than model.max_failed_groups 0.02 allows" in err
    assert "Traceback" not in err
    assert torch.load(checkpoint(tmp_path, "locus"), weights_only=True)["global_step"] == 3
    status, _, err = locus("fit", *odd(fault, range(0)), "--ckpt_path=last", "--model.max_failed_groups=0.02")
    assert status == 0, err


def test_a_reward_that_hangs_is_mentioned_and_given_up(locus, odd, caplog, monkeypatch):
    monkeypatch.setattr(scoring, "_PATIENCE_S", 0.1)
    status, _, err = locus("fit", *odd("hangs", range(2, 3)), "--model.reward_timeout=0.35")
    assert status == 0, err
    said = [r.getMessage() for r in caplog.records]
    assert sum("still waiting for the reward 'odd'" in line for line in said) >= 2
    assert any("no score after 0.35 s (model.reward_timeout)" in line and "is left out" in line for line in said)


def test_scores_may_be_a_tensor(locus, odd):
    status, _, err = locus("fit", *odd("", range(0), "Tensors"), "--trainer.max_steps=1")
    assert status == 0, err


class Constant(Reward):
    def score(self, completion, sample):
        return 0.5


def test_rewards_that_never_differ_are_said(locus, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "constant", types.SimpleNamespace(Constant=Constant))
    monkeypatch.setattr(Constant, "__module__", "constant")
    status, _, err = locus(
        "fit", *RUN, "--trainer.limit_val_batches=0", "--model.num_iterations=1", '--model.rewards=[{"class_path": "constant.Constant"}]'
    )
    assert status == 0, err
    (said,) = [r.getMessage() for r in caplog.records if "nothing is learned" in r.getMessage()]
    assert "in 5 rollout batches in a row" in said
    assert "constant always 0.5" in said


def test_a_failed_group_has_no_part_in_the_loss():
    from locus_lightning.training.rollout_batch import counted
    from locus_lightning.types import RolloutGroup
    from tests.conftest import make_completion, make_sample

    two = (make_completion("a"), make_completion("b"))
    groups = [
        RolloutGroup(make_sample(), None, two, {}, (0.0, 1.0)),
        RolloutGroup(make_sample(), None, two, {}, (0.0, 0.0), failed="it raised"),
    ]
    assert counted(groups, mask_truncated=False, filter_groups=False).tolist() == [[True, True], [False, False]]
