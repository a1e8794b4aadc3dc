"""Later objectives and corrections, each against numbers made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import decoupled_advantages, group_advantages, token_weights, weight_total
from locus_lightning.objectives.corrections import covariance, high_covariance, sampler_weights
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.objectives.kl import kl_estimate
from locus_lightning.objectives.policy_loss import gmpo_log_ratio, sapo_loss

ONE = torch.ones(1, 1, 1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("advantage", "tau"), [(2.0, 1.5), (-2.0, 3.0)])
def test_sapo_by_hand(advantage, tau):
    ratio = 1.4
    log_ratio = torch.tensor([[[math.log(ratio)]]], requires_grad=True)
    loss, _ = sapo_loss(log_ratio, torch.tensor([[advantage]]), 1.5, 3.0)
    assert float(loss.detach()) == pytest.approx(-advantage * 4 / tau * sigmoid(tau * (ratio - 1)))
    loss.sum().backward()
    gate = sigmoid(tau * (ratio - 1))
    assert float(log_ratio.grad) == pytest.approx(-advantage * 4 * gate * (1 - gate) * ratio)


def test_sapo_is_the_policy_gradient_where_the_policy_has_not_moved():
    log_ratio = torch.zeros(1, 1, 1, requires_grad=True)
    sapo_loss(log_ratio, torch.tensor([[0.7]]), 1.0, 1.05)[0].sum().backward()
    assert float(log_ratio.grad) == pytest.approx(-0.7)


def test_gmpo_by_hand():
    """Log ratios 0.9, -0.2 and 0.1, held within 0.4 on the side of gain: for a good answer 0.4, -0.2, 0.1; for a bad one all of them, as -0.2 is
    above -0.4."""
    logps, old, mask = torch.tensor([[[0.9, -0.2, 0.1, 7.0]] * 2]), torch.zeros(1, 2, 4), torch.tensor([[[1.0, 1.0, 1.0, 0.0]] * 2])
    mean, caught = gmpo_log_ratio(logps, old, mask, torch.tensor([[1.0, -1.0]]), 0.4, 0.4)
    assert torch.allclose(mean[0, 0], torch.tensor([0.1, 0.1, 0.1, 0.0]))
    assert torch.allclose(mean[0, 1], torch.tensor([0.8 / 3] * 3 + [0.0]))
    assert caught["clip_high"].tolist() == [[[True, False, False, False], [False] * 4]]
    assert not caught["clip_low"].any()
    mean, caught = gmpo_log_ratio(torch.tensor([[[-0.9]]]), torch.zeros(1, 1, 1), ONE, torch.tensor([[-1.0]]), 0.5, 0.4)
    assert float(mean) == pytest.approx(-0.5)
    assert caught["clip_low"].all()


def test_gmpos_loss_is_minus_advantage_times_the_geometric_mean():
    logps, mask = torch.tensor([[[0.3, -0.1]]]), torch.ones(1, 1, 2)
    objective = GRPO(surrogate="gmpo", reduction="sequence", clip_low=0.4, clip_high=0.4, kl_coef=0.0)
    loss, _ = objective(logps, torch.zeros(1, 1, 2), None, torch.tensor([[2.0]]), torch.full((1, 1, 2), 0.5), mask)
    assert float(loss) == pytest.approx(-2.0 * math.exp(0.1))


def test_sequence_sum_counts_every_token_and_divides_by_completions():
    mask = torch.tensor([[[True, True, True], [True, False, False]]])
    weights = token_weights(mask, "sequence_sum", 99)
    assert weights.sum(-1).tolist() == [[3.0, 1.0]]
    assert float(weight_total(mask, "sequence_sum")) == 2.0
    objective = GRPO(
        importance_sampling_level="sequence", reduction="sequence_sum", kl_coef=0.0, dual_clip=None, clip_high=9.0, clip_low=0.9
    )
    logps = torch.tensor([[[0.3, 0.6, 0.0], [0.2, 0.0, 0.0]]])
    loss, _ = objective(logps, torch.zeros_like(logps), None, torch.tensor([[1.0, -1.0]]), weights / 2, mask.float())
    assert float(loss) == pytest.approx((-3 * math.exp(0.3) + math.exp(0.2)) / 2), (
        "LUSPO: mean over completions of length x ratio x advantage"
    )


def test_gdpo_normalises_each_reward_then_the_sum():
    """A reward of small spread counts as much as one of large spread."""
    scores = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.30, 0.31], [0.31, 0.30]]])  # R = 2, B = 2, G = 2
    half = 1 / math.sqrt(2)  # two scores, less their mean, over the deviation from n - 1
    total = torch.tensor([[-2 * half, 2 * half], [half, -half]])
    expected = (total - total.mean()) / total.std()
    found = decoupled_advantages(scores, torch.tensor([1.0, 1.0]))
    assert torch.allclose(found, expected, atol=1e-3)
    assert torch.allclose(decoupled_advantages(scores, torch.tensor([1.0, 0.0]))[1], torch.zeros(2), atol=1e-6), "a constant group gets 0"
    assert (decoupled_advantages(torch.ones(2, 2, 2), torch.ones(2)) == 0).all()
    objective = GRPO(aggregation="normalize_then_sum")
    assert torch.equal(objective.advantages_of(scores.sum(0), scores, torch.ones(2)), found)
    assert torch.equal(GRPO().advantages_of(scores.sum(0), scores, torch.ones(2)), group_advantages(scores.sum(0)))


@pytest.mark.parametrize("correction", [False, True])
def test_the_corrected_kl_is_weighted_by_the_ratio(correction):
    logps, old, reference = torch.tensor([[[-1.0]]], requires_grad=True), torch.tensor([[[-1.5]]]), torch.tensor([[[-1.2]]])
    objective = GRPO(kl_coef=1.0, kl_correction=correction)
    loss, _ = objective(logps, old, reference, torch.zeros(1, 1), ONE, ONE)
    plain = math.exp(-0.2) - 1 + 0.2
    assert float(loss) == pytest.approx(plain * (math.exp(0.5) if correction else 1.0))
    loss.backward()
    by_hand = (1 - math.exp(-0.2)) if not correction else math.exp(0.5) * (1 - math.exp(-0.2) + plain)
    assert float(logps.grad) == pytest.approx(by_hand, rel=1e-5)


def test_the_corrected_kls_gradient_is_that_of_the_kl_over_a_vocabulary():
    """Sampled from the old policy, the expectation over all tokens is the gradient of KL(policy || reference)."""
    torch.manual_seed(0)
    logits, old = torch.randn(5, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64).log_softmax(0)
    reference = torch.randn(5, dtype=torch.float64).log_softmax(0)
    policy = logits.log_softmax(0)
    sampled = (old.exp() * (policy - old).exp() * kl_estimate(policy, reference, "k3", None)).sum()
    exact = (policy.exp() * (policy - reference)).sum()
    assert torch.allclose(torch.autograd.grad(sampled, logits, retain_graph=True)[0], torch.autograd.grad(exact, logits)[0])


def test_the_entropy_bonus_raises_entropy():
    entropy = torch.tensor([[[0.5]]], requires_grad=True)
    loss, _ = GRPO(kl_coef=0.0, entropy_coef=0.01)(ONE - 2, ONE - 2, None, torch.zeros(1, 1), ONE * 0.5, ONE, entropy_BGT=entropy)
    assert float(loss) == pytest.approx(-0.01 * 0.5 * 0.5)
    loss.backward()
    assert float(entropy.grad) == pytest.approx(-0.005)


@pytest.mark.parametrize(
    ("correction", "expected"),
    [("token_truncate", [math.exp(0.5), 2.0, 1.0]), ("token_mask", [math.exp(0.5), 0.0, 1.0]),
     ("sequence_truncate", [2.0] * 3), ("sequence_mask", [0.0] * 3)],
)  # fmt: skip
def test_sampler_weights_by_hand(correction, expected):
    """Log differences 0.5, 1.0 and -0.0 behind the end; the cap is 2, and e^1.5 of the whole completion is above it."""
    old, sampled, mask = torch.tensor([[[-1.0, -1.0, -4.0]]]), torch.tensor([[[-1.5, -2.0, 0.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
    weights = sampler_weights(old, sampled, mask, correction, 2.0)
    assert torch.allclose(weights[0, 0], torch.tensor(expected))


def test_the_correction_weights_the_policy_loss_and_not_the_kl():
    logps = torch.full((1, 1, 1), -1.0, requires_grad=True)
    sampled, reference = torch.full((1, 1, 1), -1.4), torch.full((1, 1, 1), -1.1)
    objective = GRPO(sampler_correction="token_truncate", sampler_cap=9.0, kl_coef=1.0)
    loss, stats = objective(logps, logps.detach(), reference, torch.ones(1, 1), ONE, ONE, sampled_logps_BGT=sampled)
    assert float(loss) == pytest.approx(-math.exp(0.4) + math.exp(-0.1) - 1 + 0.1, abs=1e-6)
    assert float(stats["sampler_masked"]) == 0
    masked, stats = GRPO(sampler_correction="token_mask", sampler_cap=1.1, kl_coef=0.0)(
        logps, logps.detach(), None, torch.ones(1, 1), ONE, ONE, sampled_logps_BGT=sampled
    )
    assert (float(masked), float(stats["sampler_masked"])) == (0.0, 1.0)


def test_covariance_by_hand():
    logps, mask = torch.tensor([[[-1.0, -3.0], [-2.0, 0.0]]]), torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    advantages = torch.tensor([[1.0, -2.0]])
    assert torch.allclose(covariance(logps, advantages, mask), torch.tensor([[[1.0, -1.0], [0.0, 0.0]]]))
    chosen = high_covariance(torch.tensor([[[0.1, 3.0, 9.0, 2.0]]]), torch.tensor([[[1.0, 1.0, 0.0, 1.0]]]), "kl", 0.67, (0.0, 0.0))
    assert chosen.tolist() == [[[False, True, False, True]]]
    chosen = high_covariance(torch.tensor([[[0.1, 3.0, 9.0, 2.0]]]), torch.ones(1, 1, 4), "clip", 1.0, (1.0, 5.0))
    assert chosen.tolist() == [[[False, True, False, True]]]


def test_tokens_of_high_covariance_lose_their_gradient_or_are_held_to_the_old_policy():
    old = torch.tensor([[[-1.0, -3.0]]])
    two = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]])  # another answer, so that advantages differ
    values, all_old = torch.cat([old, old - 1]), torch.cat([old, old - 1]) + 0.1
    both = torch.tensor([[1.0], [-1.0]])
    for kind in ("clip", "kl"):
        logps = values.clone().requires_grad_()
        objective = GRPO(covariance=kind, covariance_share=0.25, covariance_bounds=(-9.0, 9.0), covariance_coef=0.5, kl_coef=0.0)
        loss, stats = objective(logps, all_old, None, both, two, two)
        loss.backward()
        assert float(stats["covariance"]) == 0.25
        if kind == "clip":
            assert int((logps.grad == 0).sum()) == 1
        else:
            plain = values.clone().requires_grad_()
            GRPO(kl_coef=0.0)(plain, all_old, None, both, two, two)[0].backward()
            difference = logps.grad - plain.grad
            assert int((difference != 0).sum()) == 1
            assert float(difference.sum()) == pytest.approx(-0.5), "the policy has fallen below the old one there, and is drawn back"


@pytest.mark.parametrize(
    "settings",
    [{"surrogate": "sap"}, {"reduction": "sum"}, {"aggregation": "x"}, {"covariance": "x"}, {"sampler_correction": "tis"}, {"sampler_cap": 0.0},
     {"sapo_temperatures": (0.0, 1.0)}, {"covariance_share": 0.0}, {"covariance_bounds": (2.0, 1.0)}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        GRPO(**settings)
