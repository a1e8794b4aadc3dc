"""The kit passes what ships and catches what breaks the contract."""

from __future__ import annotations

import random

import pytest

from locus_lightning import plugins
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.rewards.base import Reward
from locus_lightning.testing import check_cue_sampler, check_reward


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


@pytest.mark.parametrize(("reward", "error"), [(Raises, TypeError), (Dice, AssertionError), (NotANumber, AssertionError)])
def test_a_reward_that_breaks_the_contract_is_caught(reward, error):
    with pytest.raises(error):
        check_reward(reward())


def test_a_sampler_that_leaves_the_image_is_caught():
    class Outside(ObjectCues):
        def integer_window(self, box, image_size):
            return (0, 0, image_size[0] + 5, image_size[1])

    with pytest.raises((AssertionError, StopIteration)):
        check_cue_sampler(Outside({"large": 1.0}))
