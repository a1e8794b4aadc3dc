from __future__ import annotations

import pytest

from locus_lightning.errors import ConfigError
from locus_lightning.rewards.base import Reward
from locus_lightning.rewards.format import FormatReward
from locus_lightning.rewards.iou import IoUReward
from locus_lightning.tasks.parsing import parse_response
from locus_lightning.types import Completion
from tests.conftest import make_completion, make_sample


def read(text):
    response = parse_response(text)
    return Completion(text, response.box_text, response.well_formed, truncated=False)


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
        IoUReward(weight=-1)


def test_defaults_are_the_papers():
    assert (IoUReward().weight, FormatReward().weight) == (0.9, 0.1)
