"""From scored groups to micro-batches, against numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from locus_lightning.objectives.advantages import group_advantages
from locus_lightning.training.base import TaskModule
from locus_lightning.training.geometry import step_totals
from locus_lightning.training.rollout_batch import RolloutBatch, counted, sampled_logps, sampler_gap, token_mask
from locus_lightning.types import Completion, Generation, RolloutGroup
from tests.conftest import make_sample


def group(lengths, rewards, truncated=(), failed=""):
    made = []
    for i, length in enumerate(lengths):
        generation = Generation(torch.arange(length) + 10 * i, -torch.arange(1.0, length + 1), i in truncated)
        made.append(Completion("", None, True, i in truncated, generation=generation))
    return RolloutGroup(make_sample(), None, tuple(made), {}, tuple(rewards), failed)


GROUPS = [group((2, 3), (0.0, 1.0)), group((1, 2), (0.5, 0.5)), group((3, 1), (0.2, 0.9), truncated=(0,))]


def test_which_completions_count():
    assert counted(GROUPS, mask_truncated=False, filter_groups=False).tolist() == [[True, True]] * 3
    assert counted(GROUPS, mask_truncated=True, filter_groups=False).tolist() == [[True, True], [True, True], [False, True]]
    assert counted(GROUPS, mask_truncated=False, filter_groups=True).tolist() == [[True, True], [False, False], [True, True]]
    assert counted(GROUPS, mask_truncated=True, filter_groups=True).tolist() == [[True, True], [False, False], [False, True]]
    failed = [GROUPS[0], group((2, 2), (0.0, 1.0), failed="it raised")]
    assert counted(failed, mask_truncated=False, filter_groups=False).tolist() == [[True, True], [False, False]]


def test_the_mask_is_true_at_tokens_of_completions_that_count_and_nowhere_else():
    counted_BG = torch.tensor([[True, True], [False, False], [False, True]])
    assert token_mask(GROUPS, counted_BG).tolist() == [
        [[True, True, False], [True, True, True]],
        [[False, False, False], [False, False, False]],
        [[False, False, False], [True, False, False]],
    ]


def test_the_samplers_log_probabilities_are_padded_with_zero():
    assert sampled_logps(GROUPS[:2]).tolist() == [[[-1, -2, 0], [-1, -2, -3]], [[-1, 0, 0], [-1, -2, 0]]]


@pytest.mark.parametrize("reduction", ["token", "sequence", "constant"])
def test_each_optimiser_step_is_divided_by_its_own_total(reduction):
    """Two steps of two passes each; the totals differ, so the second step must not take the first one's."""
    mask = token_mask([*GROUPS, group((2, 2), (0.0, 1.0))], torch.ones(4, 2, dtype=torch.bool))
    completions = [[torch.arange(3)] * 2] * 4
    batch = RolloutBatch([None] * 4, completions, torch.zeros(4, 2), mask, torch.zeros(4, 2, 3))
    cut = batch.cut([[0], [1], [2], [3]], totals=[2.0, 5.0], accumulate=2, reduction=reduction, max_tokens=4)
    per_token = {"token": lambda n: 1.0, "sequence": lambda n: 1.0 / n, "constant": lambda n: 0.25}[reduction]
    for i, (micro, total) in enumerate(zip(cut, (2.0, 2.0, 5.0, 5.0), strict=True)):
        for g in range(2):
            length = int(mask[i, g].sum())
            expected = [per_token(length) / total] * length + [0.0] * (3 - length)
            assert micro.weights_BGT[0, g].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("accumulate", "ranks"), [(1, 1), (2, 1), (2, 4)])
def test_totals_leave_room_for_the_trainers_own_averages(accumulate, ranks):
    """The trainer averages gradients over passes and processes; the divisor undoes that, and sums over processes."""
    mask = token_mask(GROUPS[:2], torch.ones(2, 2, dtype=torch.bool))  # 5 and 3 tokens
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value * ranks)
    trainer = SimpleNamespace(accumulate_grad_batches=accumulate, strategy=strategy, world_size=ranks)
    module = SimpleNamespace(trainer=trainer, objective=SimpleNamespace(reduction="token"))
    totals = step_totals(module, mask, [[0], [1]])
    tokens = [8.0] if accumulate == 2 else [5.0, 3.0]
    assert totals == [n * ranks / (accumulate * ranks) for n in tokens]


def test_advantages_are_divided_by_the_deviation_plus_a_little():
    rewards = torch.tensor([[0.0, 3e-6]])
    std = 3e-6 / 2**0.5
    expected = 1.5e-6 / (std + 1e-6)
    assert group_advantages(rewards).tolist() == [pytest.approx([-expected, expected], rel=1e-4)]


def test_the_samplers_gap_is_over_counted_tokens_only():
    micro = SimpleNamespace(sampled_logps_BGT=torch.tensor([[[-1.0, -2.0]]]), mask_BGT=torch.tensor([[[True, False]]]))
    gap = sampler_gap(torch.tensor([[[-1.5, -9.0]]]), micro)
    assert float(gap["sampler_gap"]) == float(gap["sampler_gap_max"]) == 0.5


def test_means_over_processes_are_over_those_that_have_a_figure(monkeypatch):
    """Processes may have different figures: one had questions alone in its rollout batch."""
    others = {"rollout/question_score": 1.0, "reward/total": 0.0}

    def gather(rows, own):
        rows[:] = [own, others]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    module = SimpleNamespace(trainer=SimpleNamespace(world_size=2))
    own = {"rollout/iou": 0.5, "reward/total": 1.0, "rollout/nothing": float("nan")}
    means = TaskModule.mean_over_ranks(module, own)
    assert means == {"rollout/iou": 0.5, "reward/total": 0.5, "rollout/question_score": 1.0}
