from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from locus_lightning.boxes import BoxFrame
from locus_lightning.errors import ConfigError, PluginError
from locus_lightning.rewards.answer import AnswerReward
from locus_lightning.rewards.base import Reward, checked_scores
from locus_lightning.rewards.format import FormatReward
from locus_lightning.rewards.iou import IoUReward
from locus_lightning.tasks.cue_search import CueSearch
from locus_lightning.types import Completion
from tests.conftest import make_completion, make_sample


def read(text):
    return CueSearch().complete(text, make_sample(100, 80, (10, 10, 50, 50)), BoxFrame.stretched((100, 80), (100, 80)))


def test_iou_of_the_answered_box():
    sample = make_sample(100, 80, (10, 10, 50, 50))
    assert IoUReward().score(make_completion("", (10, 10, 50, 50)), sample) == 1.0
    assert IoUReward().score(make_completion("", (10, 10, 30, 50)), sample) == pytest.approx(0.5)
    assert IoUReward().score(make_completion("", None), sample) == 0.0


def test_a_box_beyond_the_image_is_clipped_first():
    sample = make_sample(100, 80, (60, 40, 100, 80))
    assert IoUReward().score(make_completion("", (60, 40, 500, 500)), sample) == 1.0


def test_format_is_about_structure_only():
    sample = make_sample()
    assert FormatReward().score(make_completion("", None, well_formed=True), sample) == 1.0
    assert FormatReward().score(make_completion("", (1, 1, 2, 2), well_formed=False), sample) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "<think>x</think><answer>[0, 0, 50, 80] [50, 0, 100, 80]</answer>",  # two halves cover everything
        "<answer>[10, 10, 50, 50]</answer>" * 2,
        "<think><answer>[10, 10, 50, 50]</answer></think>" * 2,
        "[10, 10, 50, 50]",
        "<answer>[50, 50, 10, 10]</answer>",
        "<answer>[10, 10, inf, 50]</answer>",
    ],
)
def test_hedging_and_smuggling_earn_nothing(text):
    sample = make_sample(100, 80, (10, 10, 50, 50))
    assert IoUReward().score(read(text), sample) == 0.0


def test_the_whole_image_earns_no_more_than_its_share():
    sample = make_sample(100, 80, (10, 10, 50, 50))
    assert IoUReward().score(read("<think>x</think><answer>[0, 0, 100, 80]</answer>"), sample) == pytest.approx(0.2)


def test_names_and_weights():
    class ReferringGIoUReward(Reward):
        def score(self, completion, sample):
            return 0.25

    assert IoUReward().name == "iou"
    assert FormatReward().name == "format"
    assert ReferringGIoUReward().score_group([make_completion("")] * 3, make_sample()) == [0.25] * 3
    with pytest.raises(ConfigError, match="weight"):
        IoUReward(weight=float("nan"))
    assert IoUReward(weight=-1).weight == -1, "a penalty"
    assert IoUReward(name="loose").name == "loose"


def test_defaults_are_the_papers():
    assert (IoUReward().weight, FormatReward().weight) == (0.9, 0.1)


class Given(Reward):
    """Gives what it was told to."""

    def __init__(self, given):
        super().__init__()
        self.given = given

    def score(self, completion, sample):
        return 0.0

    def score_group(self, completions, sample):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


@pytest.mark.parametrize("value", [1, True, 0.5, np.float32(0.5), np.int64(1), torch.tensor(0.5), torch.tensor([0.5])])
def test_a_score_may_be_any_real_number_type(value):
    made = checked_scores(Given([value] * 2), [make_completion("")] * 2, make_sample())
    assert made == (float(value),) * 2
    assert all(type(score) is float for score in made)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.5], "gave 1 scores for 2 completions"),
        ([0.5] * 3, "gave 3 scores for 2 completions"),
        ([0.5, math.nan], "completion 1: the score is nan; it must be finite"),
        ([0.5, math.inf], "must be finite"),
        ([None, 0.5], "completion 0: the score is None, which is no number"),
        (["1.0", 0.5], "the score is '1.0', which is no number"),
        ([torch.zeros(3), 0.5], "which is no number"),
        (None, "it raised TypeError"),
        (ValueError("no network"), "it raised ValueError: no network"),
    ],
)
def test_a_bad_score_names_reward_and_sample(given, message):
    with pytest.raises(PluginError, match=message) as caught:
        checked_scores(Given(given), [make_completion("")] * 2, make_sample())
    assert "the reward 'given'" in str(caught.value)
    assert "sample sample-0" in str(caught.value)


def test_the_tasks_own_score_is_a_reward_for_every_task():
    assert AnswerReward().score(Completion("", "x", True, False, score=0.25), make_sample()) == 0.25
    assert AnswerReward.fits is None


def test_several_boxes_are_scored_in_order():
    sample = SimpleNamespace(image=make_sample(100, 80).image, boxes=((0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 40.0, 40.0)))
    one = Completion("", ((0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 40.0, 30.0)), True, False)
    assert IoUReward().score(one, sample) == pytest.approx(0.75)
