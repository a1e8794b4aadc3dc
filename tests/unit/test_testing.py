"""The kit passes what ships and catches what breaks the contract."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from locus_lightning import plugins
from locus_lightning.cue_samplers.base import CueSampler
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.data.coco.annotations import CocoImage
from locus_lightning.data.coco.index import windows_of
from locus_lightning.errors import PluginError
from locus_lightning.rewards.base import Reward
from locus_lightning.tasks.cue_search import CueSearch
from locus_lightning.testing import check_cue_sampler, check_reward, check_task
from locus_lightning.types import CueWindow, SceneObject


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

    with pytest.raises(AssertionError, match="the cue sampler Outside"):
        check_cue_sampler(Outside({"large": 1.0}))


class Nothing(CueSampler):
    def sample(self, image_size, objects, rng):
        return None


class NoSuper(CueSampler):
    def __init__(self):
        pass

    def sample(self, image_size, objects, rng):
        return [CueWindow((0, 0, 20, 20), "tiny")]


class Floats(CueSampler):
    def sample(self, image_size, objects, rng):
        return [CueWindow((0.0, 0.0, 20.0, 20.0), "tiny")]


class WrongBin(CueSampler):
    def sample(self, image_size, objects, rng):
        return [CueWindow((0, 0, 20, 20), "large")]


class Empty(CueSampler):
    def sample(self, image_size, objects, rng):
        return [CueWindow((30, 30, 30, 30), "tiny")]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Nothing, "gave no window for any of 20 images"),
        (NoSuper, r"call super\(\).__init__"),
        (Floats, "is not four Python integers"),
        (WrongBin, "is filed under large, and is"),
        (Empty, "is empty or reaches beyond the image"),
    ],
)
def test_a_sampler_that_breaks_the_contract_is_caught_and_named_in_training_too(sampler, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        check_cue_sampler(sampler())
    if sampler is not Nothing:
        image = CocoImage(3, "photos/3.jpg", (640, 480), (SceneObject((10, 10, 50, 50)),))
        with pytest.raises(PluginError, match=f"the cue sampler {sampler.__name__} .*photos/3.jpg.*{message}"):
            windows_of([image], sampler(), 8, 0, Counter())


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
