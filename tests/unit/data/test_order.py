"""Orders of the training samples: shuffled, large to small, and mining by pass rate."""

from __future__ import annotations

from collections import Counter

import lightning as L
import numpy as np
import pytest
import torch

from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.data.order import HardCues, LargeToSmall, SampleOrder, Shuffled
from locus_lightning.data.source import CueDataset, CueKey
from locus_lightning.data.synthetic.scenes import SceneCues
from locus_lightning.errors import CheckpointError, ConfigError
from locus_lightning.training.sft import SupervisedModule
from tests.conftest import FAMILIES
from tests.unit.training.test_grpo import LengthReward, module, trainer

N = 60


class Sized(CueDataset):
    """Items whose cues are the smaller the higher their number."""

    def __len__(self):
        return N

    def __getitem__(self, key):
        return key

    def cue_share(self, item):
        return 1 / (1 + item)


def begun(order: SampleOrder, batch=6, ahead=18) -> SampleOrder:
    order.begin(Sized(), seed=0, pass_length=N // batch * batch, ahead=ahead)
    return order


def items(order, start, stop, epoch=0):
    return [key.item for key in order.keys(epoch, start, stop)]


def test_shuffled_is_the_permutation_of_seed_and_epoch():
    order = begun(Shuffled())
    assert items(order, 0, N, epoch=3) == np.random.default_rng([0, 3]).permutation(N).tolist()
    assert order.keys(3, 4, 5)[0].epoch == 3


def test_large_cues_come_first_and_every_cue_once():
    order = begun(LargeToSmall(start=0.1, until=0.5))
    first = items(order, 0, N)
    assert sorted(first) == list(range(N))
    assert first[0] < 0.1 * N
    reach = [max(first[: t + 1]) for t in range(N)]
    for t, furthest in enumerate(reach):
        share = np.sqrt(min(1.0, t / (0.5 * N)) * 0.99 + 0.01)
        assert furthest < max(np.ceil(share * N), t + 1), "no cue comes before it is in reach"
    assert np.mean(first[:10]) < 20 < 25 < np.mean(items(begun(Shuffled()), 0, 10)), "larger than by chance"
    assert items(order, 0, N, epoch=1) == items(begun(Shuffled()), 0, N, epoch=1), "later passes are shuffled"


def test_a_source_that_does_not_know_sizes_has_no_curriculum():
    data = CueDataModule(SceneCues(image_size=96, train_size=16, val_size=2), batch_size=2, order=LargeToSmall())
    with pytest.raises(ConfigError, match="LargeToSmall, and this source does not know how large"):
        trainer().fit(module(), datamodule=data)


def outcome(item):
    """Items below 20 always pass, those below 40 half the time, the rest never."""
    return (1.0, 1.0) if item < 20 else (1.0, 0.0) if item < 40 else (0.2, 0.0)


def asked(order, batches, batch=6, first=0, lead=0):
    """The items of batches in turn, with their outcomes noted when they are used; ``lead`` batches are fetched ahead."""
    taken, per_pass = [], N // batch
    for b in range(first, first + batches):
        for ahead in range(b, b + lead + 1):
            order.keys(ahead // per_pass, ahead % per_pass * batch, (ahead % per_pass + 1) * batch)
        epoch, start = b // per_pass, b % per_pass * batch
        now = items(order, start, start + batch, epoch)
        order.note(epoch, start, [(item, outcome(item)) for item in now])
        taken += now
    return taken


@pytest.mark.parametrize(("target", "wanted"), [(0.5, range(20, 40)), (0.0, range(40, 60)), (1.0, range(20))])
def test_cues_near_the_wanted_pass_rate_come_back_most(target, wanted):
    order = begun(HardCues(round=24, target=target, floor=0.01))
    asked(order, 40)
    late = Counter(asked(order, 60, first=40))
    share = sum(late[item] for item in wanted) / late.total()
    assert share > 0.6, "a third of them would be no preference"
    assert len(late) > 40, "the others are not forgotten"
    known = order.figures()
    assert known["order/asked"] > 0.95
    assert known["order/easy"] == pytest.approx(1 / 3, abs=0.05)
    assert known["order/hard"] == pytest.approx(1 / 3, abs=0.05)


def test_no_cue_comes_twice_in_a_round():
    order = begun(HardCues(round=30))
    taken = asked(order, 50)
    assert all(len(set(taken[i : i + 30])) == 30 for i in range(0, len(taken), 30))


def test_what_a_loader_fetches_ahead_changes_nothing():
    assert asked(begun(HardCues(round=18)), 60) == asked(begun(HardCues(round=18)), 60, lead=2)


@pytest.mark.parametrize("stop", [1, 7, 15, 16, 29])
def test_mining_goes_on_from_its_state(stop):
    whole = asked(begun(HardCues(round=18)), 40, lead=2)
    order = begun(HardCues(round=18))
    first = asked(order, stop, lead=2)
    state = order.state_dict()
    asked(order, 3, first=stop)  # a state is a copy
    resumed = HardCues(round=18)
    resumed.load_state_dict(state)
    assert first + asked(begun(resumed), 40 - stop, first=stop, lead=2) == whole


def test_rounds_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="at least 18, which is what the loader fetches ahead, and at most 60"):
        begun(HardCues(round=12))
    with pytest.raises(ConfigError, match="at most 60"):
        begun(HardCues(round=61))
    order = begun(HardCues(round=18))
    asked(order, 5)
    other = HardCues(round=20)
    other.load_state_dict(order.state_dict())
    with pytest.raises(CheckpointError, match="in rounds of 18, this run's of 60 in rounds of 20"):
        begun(other)


@pytest.mark.parametrize("settings", [{"round": 0}, {"target": 1.5}, {"floor": 0.0}, {"threshold": -1}, {"memory": 1.0}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ConfigError, match=r"HardCues"):
        HardCues(**settings)


class Seen(L.Callback):
    def __init__(self):
        self.ids, self.figures = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.ids += [sample.id for sample in batch]
        self.figures.append(dict(trainer.callback_metrics))


def fitted(steps, checkpoint=None):
    """Rewards move the policy; scores of a random model are all 0, so that what is asked again is known to be hard."""
    data = CueDataModule(SceneCues(image_size=96, train_size=12, val_size=2), batch_size=2, order=HardCues(round=6))
    seen = Seen()
    run = trainer(max_steps=steps, max_epochs=-1, callbacks=[seen])
    torch.manual_seed(0)
    run.fit(module(rewards=[LengthReward()]), datamodule=data, ckpt_path=checkpoint)
    return run, data, seen


def test_a_run_with_mining_is_continued_with_the_same_samples(tmp_path):
    _, data, whole = fitted(14)
    run, _, first = fitted(9)
    run.save_checkpoint(tmp_path / "half.ckpt")
    _, _, rest = fitted(14, tmp_path / "half.ckpt")
    assert first.ids + rest.ids == whole.ids
    assert len(set(whole.ids)) < len(whole.ids), "samples came back"
    assert float(whole.figures[-1]["order/hard"]) == 1.0
    assert data.order.figures()["order/asked"] == len(set(whole.ids)) / 12


def test_another_order_is_refused_on_resume(tmp_path):
    run, _, _ = fitted(3)
    run.save_checkpoint(tmp_path / "half.ckpt")
    data = CueDataModule(SceneCues(image_size=96, train_size=12, val_size=2), batch_size=2)
    with pytest.raises(CheckpointError, match=r"data\.order HardCues -> Shuffled"):
        trainer(max_steps=5).fit(module(rewards=[LengthReward()]), datamodule=data, ckpt_path=tmp_path / "half.ckpt")


def test_mining_without_rollouts_is_refused():
    data = CueDataModule(SceneCues(image_size=96, train_size=12, val_size=2), batch_size=2, order=HardCues(round=6))
    with pytest.raises(ConfigError, match="learns from rollouts; SupervisedModule makes none"):
        trainer().fit(SupervisedModule(FAMILIES["llava"]("toy:llava")), datamodule=data)


def test_an_order_that_has_not_begun_has_no_state():
    assert HardCues().state_dict() == {}


def test_a_sample_that_comes_back_is_the_same():
    order = begun(HardCues(round=30))
    assert {key.epoch for epoch in range(4) for key in order.keys(epoch, 0, N)} == {0}
    assert isinstance(order.keys(0, 0, 1)[0], CueKey)
