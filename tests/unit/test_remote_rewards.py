"""Rewards that see a rollout batch whole, that wait for somebody, that have to be set up."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch

from locus_lightning.errors import ConfigError, PluginError
from locus_lightning.rewards.base import Reward, RewardBatch
from locus_lightning.rewards.iou import IoUReward
from locus_lightning.rewards.remote import RemoteReward
from locus_lightning.training.scoring import Scorer
from locus_lightning.types import RolloutGroup
from tests.conftest import make_completion, make_sample


def groups(number=3):
    return [RolloutGroup(make_sample(), None, tuple(make_completion(f"{b} {g}") for g in range(2))) for b in range(number)]


class Judge(RemoteReward):
    """Scores the last digit of a text; fails as it is told to."""

    def __init__(self, failures=None, wait=0.0, **more):
        super().__init__(**more)
        self.failures, self.wait, self.now, self.most, self.calls = dict(failures or {}), wait, 0, 0, []

    async def ask(self, completion, sample):
        self.calls.append(completion.text)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.wait)
            if self.failures.get(completion.text, 0) > 0:
                self.failures[completion.text] -= 1
                raise ConnectionError("busy")
            return float(completion.text[-1])
        finally:
            self.now -= 1


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Retries do not wait in tests."""
    sleep = asyncio.sleep
    monkeypatch.setattr("locus_lightning.rewards.remote.asyncio.sleep", lambda seconds: sleep(0 if seconds >= 1 else seconds))


def test_calls_are_together_and_bounded():
    judge = Judge(wait=0.02, concurrency=4)
    scored = Scorer([judge], 0.1, None).score_all(groups(8), 0)
    assert [group.rewards for group in scored] == [(0.0, 1.0)] * 8
    assert judge.most == 4


def test_a_failed_call_is_tried_again():
    judge = Judge({"1 0": 2}, retries=2)
    scored = Scorer([judge], 0.1, None).score_all(groups(), 0)
    assert judge.calls.count("1 0") == 3
    assert not any(group.failed for group in scored)


def test_a_call_that_fails_for_good_leaves_its_group_out_alone():
    judge = Judge({"1 0": 9}, retries=1)
    first, second, third = Scorer([IoUReward(), judge], 1.0, None).score_all(groups(), 0)
    assert not first.failed
    assert not third.failed
    assert "2 calls failed, the last one with ConnectionError: busy" in second.failed
    assert second.rewards == (0.0, 0.0)


def test_a_call_that_takes_too_long_fails():
    judge = Judge(wait=0.5, timeout=0.05, retries=0)
    started = time.monotonic()
    (group,) = Scorer([judge], 1.0, None).score_all(groups(1), 0)
    assert "no score within 0.05 s" in group.failed
    assert time.monotonic() - started < 10


def test_too_many_failed_groups_stop_training():
    judge = Judge({f"{b} 0": 9 for b in range(60)}, retries=0)
    with pytest.raises(PluginError, match="more than model.max_failed_groups"):
        Scorer([judge], 0.1, None).score_all(groups(60), 0)


@pytest.mark.parametrize("settings", [{"timeout": 0.0}, {"concurrency": 0}, {"retries": -1}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ConfigError, match="Judge: timeout"):
        Judge(**settings)


class Whole(Reward):
    """Ranks a completion among those of the whole batch; more later in training."""

    def score(self, completion, sample):
        raise AssertionError("asked one by one")

    def score_batch(self, batch):
        texts = sorted(one.text for completions, _ in batch.groups for one in completions)
        return [[batch.step + texts.index(one.text) for one in completions] for completions, _ in batch.groups]


def test_a_reward_may_see_the_whole_batch_and_the_step():
    scored = Scorer([Whole()], 0.1, None).score_all(groups(), 100)
    assert [group.scores["whole"] for group in scored] == [(100.0, 101.0), (102.0, 103.0), (104.0, 105.0)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([[1.0, 2.0]], "gave 1 groups of scores for 3 groups"),
        (ValueError("oh"), "it raised ValueError: oh"),
        ([[1.0]] * 3, "gave 1 scores for 2"),
    ],
)
def test_a_batch_of_scores_is_held_to_the_contract(given, words):
    class Odd(Whole):
        def score_batch(self, batch):
            if isinstance(given, Exception):
                raise given
            return given

    scored = Scorer([Odd()], 1.0, None).score_all(groups(), 0)
    assert all(words in group.failed for group in scored)


def test_a_batch_that_hangs_is_given_up():
    class Hangs(Whole):
        def score_batch(self, batch: RewardBatch):
            time.sleep(30)

    scored = Scorer([Hangs()], 1.0, 0.05).score_all(groups(), 0)
    assert all("a whole rollout batch: no score after" in group.failed for group in scored)


class Prepared(IoUReward):
    """Notes when it is set up and let go."""

    def __init__(self, fails=False):
        super().__init__(name="prepared")
        self.fails, self.events = fails, []

    def setup(self, device):
        if self.fails:
            raise OSError("no model there")
        self.events.append(device.type)

    def teardown(self):
        self.events.append("gone")


def train(reward, steps=1):
    import lightning as L

    from locus_lightning import AutoBackbone, CueDataModule, LocusModule, SamplingParams, SceneCues

    module = LocusModule(AutoBackbone("toy:llava"), rewards=[reward], sampling=SamplingParams(2), group_size=2, groups_per_step=2)
    trainer = L.Trainer(max_steps=steps, logger=False, enable_checkpointing=False, limit_val_batches=0, accelerator="cpu", devices=1,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(module, datamodule=CueDataModule(SceneCues(train_size=8, val_size=2)))


def test_a_reward_is_set_up_before_training_and_let_go_of_after_it():
    reward = Prepared()
    train(reward)
    assert reward.events == ["cpu", "gone"]


def test_a_reward_is_let_go_of_when_training_fails():
    class Breaks(Prepared):
        def score_batch(self, batch):
            raise KeyboardInterrupt  # what a plugin must not catch, and training does not survive

    reward = Breaks()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(reward)
    assert reward.events == ["cpu", "gone"]


def test_a_reward_that_cannot_be_set_up_is_named():
    with pytest.raises(PluginError, match=r"'prepared' cannot be set up: OSError: no model there"):
        train(Prepared(fails=True))


def test_scores_stay_what_they_were():
    torch.manual_seed(0)
    (group,) = Scorer([IoUReward(weight=0.5), IoUReward(weight=0.25, name="more")], 0.1, None).score_all(
        [RolloutGroup(make_sample(), None, (make_completion("", make_sample().box), make_completion("")))], 0
    )
    assert group.rewards == (0.75, 0.0)
