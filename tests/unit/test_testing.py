"""The kit passes what ships and catches what breaks the contract."""

from __future__ import annotations

import random

import pytest

from locus_lightning import plugins
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.rewards.base import Reward
from locus_lightning.tasks.cue_search import CueSearch
from locus_lightning.testing import check_cue_sampler, check_reward, check_task


@pytest.mark.parametrize("name", [plugin.name for plugin in plugins.available("rewards")])
def test_every_installed_reward_conforms(name):
    check_reward(plugins.load("rewards", name)())


@pytest.mark.parametrize("name", [plugin.name for plugin in plugins.available("cue_samplers")])
def test_every_installed_cue_sampler_conforms(name):
    check_cue_sampler(plugins.load("cue_samplers", name)({"tiny": 1.0, "small": 1.0, "medium": 1.0, "large": 1.0}))


class Raises(Reward):
    def score(self, completion, sample):
        return completion.box[0]


class Dice(Reward):
    def score(self, completion, sample):
        return random.random()


class NotANumber(Reward):
    def score(self, completion, sample):
        return float("nan")


@pytest.mark.parametrize(
    ("reward", "message"), [(Raises, "it raised TypeError"), (Dice, "is not deterministic"), (NotANumber, "it must be finite")]
)
def test_a_reward_that_breaks_the_contract_is_caught(reward, message):
    with pytest.raises(AssertionError, match=message):
        check_reward(reward())


def test_a_sampler_that_leaves_the_image_is_caught():
    class Outside(ObjectCues):
        def integer_window(self, box, image_size):
            return (0, 0, image_size[0] + 5, image_size[1])

    with pytest.raises((AssertionError, StopIteration)):
        check_cue_sampler(Outside({"large": 1.0}))


class HalfRight(CueSearch):
    """Writes an answer that it does not read back."""

    def write_answer(self, sample, frame):
        return frame.to_text((0.0, 0.0, *sample.box[2:]))


class Raising(CueSearch):
    def parse(self, text, sample, frame):
        return super().parse(text[:-1] + text[-1], sample, frame)


@pytest.mark.parametrize(("task", "message"), [(HalfRight, "the right answer scores"), (Raising, "string index out of range")])
def test_a_task_that_breaks_the_contract_is_caught(task, message):
    with pytest.raises((AssertionError, IndexError), match=message):
        check_task(task())
