"""The algorithm, against hand-made numbers and exact sums over a toy vocabulary (the list of what GRPO gets wrong)."""

from __future__ import annotations

import math

import pytest
import torch

from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import group_advantages, token_weights, weight_total, zero_std_groups
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.objectives.kl import kl_estimate
from locus_lightning.objectives.policy_loss import cispo_loss, clipped_loss, log_ratio
from locus_lightning.objectives.supervised import next_token_loss


def test_advantages_are_centred_and_scaled_by_the_unbiased_std():
    rewards = torch.tensor([[0.0, 1.0, 2.0, 5.0]])
    expected = (rewards - 2.0) / (rewards.std(dim=1, keepdim=True, unbiased=True) + 1e-6)
    assert torch.allclose(group_advantages(rewards), expected)
    assert torch.allclose(group_advantages(rewards, "none"), rewards - 2.0)


def test_a_constant_group_has_advantage_exactly_zero():
    rewards = torch.tensor([[0.1, 0.1, 0.1], [0.7, 0.7, 0.7]])  # whose mean is not exactly 0.1 in floats
    assert (group_advantages(rewards) == 0).all()
    assert zero_std_groups(torch.tensor([[0.3, 0.3], [0.3, 0.4]])).tolist() == [True, False]


def test_std_floor_keeps_a_nearly_constant_group_small():
    rewards = torch.tensor([[0.5, 0.5001]])
    assert group_advantages(rewards).abs().max() > 0.5
    assert group_advantages(rewards, std_floor=0.1).abs().max() < 1e-3


def test_ratio_is_one_before_the_policy_moves():
    logps = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.ones(2, 3, 4)
    advantages = torch.randn(2, 3)
    loss, stats = GRPO(kl_coef=0.0)(logps, logps.detach(), None, advantages, mask / 24, mask)
    assert stats["ratio_max"] == stats["ratio_min"] == 1.0
    assert loss.item() == pytest.approx(-advantages.mean().item(), abs=1e-6)
    loss.backward()
    assert torch.allclose(logps.grad, -(advantages[..., None] / 24).expand(2, 3, 4), atol=1e-7)


@pytest.mark.parametrize(
    ("ratio", "advantage", "caught", "gradient"),
    [
        (1.25, 1.0, None, True),  # above 1.2 but clip_high is 0.3
        (1.35, 1.0, "clip_high", False),
        (0.75, -1.0, "clip_low", False),
        (0.75, 1.0, None, True),  # a good token that became rarer keeps its gradient
        (1.35, -1.0, None, True),
        (3.5, -1.0, "dual_clip", False),
    ],
)
def test_clip_is_asymmetric_and_dual(ratio, advantage, caught, gradient):
    log_r = torch.full((1, 1, 1), math.log(ratio), requires_grad=True)
    loss, hits = clipped_loss(log_r, torch.tensor([[advantage]]), clip_low=0.2, clip_high=0.3, dual_clip=3.0)
    assert {name for name, hit in hits.items() if hit.any()} == ({caught} if caught else set())
    loss.sum().backward()
    assert bool(log_r.grad.abs().sum() > 0) is gradient


def test_dual_clip_bounds_the_loss():
    log_r = torch.full((1, 1, 1), math.log(100.0))
    loss, _ = clipped_loss(log_r, torch.tensor([[-2.0]]), dual_clip=3.0)
    assert loss.item() == pytest.approx(6.0)
    loss, _ = clipped_loss(log_r, torch.tensor([[-2.0]]), dual_clip=None)
    assert loss.item() == pytest.approx(200.0)


def test_gspo_ratio_is_the_exponential_of_the_masked_mean():
    new, old = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    mask = torch.tensor([[[1.0, 1, 1, 0], [1, 0, 0, 0]]])
    ratio = log_ratio(new, old, mask, "sequence").exp()
    assert ratio[0, 0, 0].item() == pytest.approx(math.exp((new - old)[0, 0, :3].mean()), rel=1e-5)
    assert ratio[0, 1, 0].item() == pytest.approx(math.exp((new - old)[0, 1, 0]), rel=1e-5)


def test_gspo_gradient_is_that_of_the_sequence_ratio():
    old, mask, advantage = torch.randn(1, 1, 3), torch.ones(1, 1, 3), torch.tensor([[0.7]])
    logps = (old + 0.01 * torch.randn(1, 1, 3)).requires_grad_()
    loss, _ = GRPO(kl_coef=0.0, importance_sampling_level="sequence", reduction="sequence", clip_low=0.5, clip_high=0.5)(
        logps, old, None, advantage, mask / 3, mask
    )
    (grad,) = torch.autograd.grad(loss, logps)
    (expected,) = torch.autograd.grad(-0.7 * (logps - old).mean().exp(), logps)
    assert torch.allclose(grad, expected, atol=1e-6)


def test_cispo_keeps_every_gradient_with_a_constant_weight():
    logps = torch.zeros(1, 1, 2, requires_grad=True)
    log_r = torch.tensor([[[math.log(9.0), 0.0]]])
    loss, hits = cispo_loss(logps, log_r, torch.tensor([[1.0]]), clip_high=1.0)
    loss.sum().backward()
    assert logps.grad.tolist() == [[[-2.0, -1.0]]]
    assert hits["clip_high"].tolist() == [[[True, False]]]


@pytest.fixture
def toy_distributions():
    torch.manual_seed(0)
    return torch.randn(7, dtype=torch.float64, requires_grad=True), torch.randn(7, dtype=torch.float64)


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_kl_estimators_against_the_exact_kl(toy_distributions, estimator, unbiased):
    logits, other = toy_distributions
    policy, reference = logits.log_softmax(0), other.log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    expectation = (policy.exp() * kl_estimate(policy, reference, estimator)).sum()
    assert math.isclose(expectation.item(), exact.item(), rel_tol=1e-9) is unbiased


@pytest.mark.parametrize(("estimator", "expected"), [("k1", "exact"), ("k2", "exact"), ("k3", "reverse")])
def test_kl_gradients_against_the_exact_gradient(toy_distributions, estimator, expected):
    """As a loss on samples: k1's and k2's expected gradient is that of KL(pi||ref), k3's that of KL(ref||pi)."""
    logits, other = toy_distributions
    policy, reference = logits.log_softmax(0), other.log_softmax(0)
    sampled = (policy.detach().exp() * kl_estimate(policy, reference, estimator)).sum()
    (gradient,) = torch.autograd.grad(sampled, logits, retain_graph=True)
    targets = {
        "exact": (policy.exp() * (policy - reference)).sum(),
        "reverse": (reference.exp() * (reference - policy)).sum(),
    }
    (exact,) = torch.autograd.grad(targets[expected], logits)
    assert torch.allclose(gradient, exact, atol=1e-9)


def test_reductions():
    mask = torch.tensor([[[1, 1, 1, 1], [1, 0, 0, 0]]], dtype=torch.bool)
    per_token = torch.tensor([[[1.0, 1, 1, 1], [6, 6, 6, 6]]])

    def mean(reduction):
        weights = token_weights(mask, reduction, max_tokens=10) / weight_total(mask, reduction)
        return (per_token * weights).sum().item()

    assert mean("token") == pytest.approx(10 / 5)  # DAPO: over all tokens of the step
    assert mean("sequence") == pytest.approx((1 + 6) / 2)
    assert mean("constant") == pytest.approx((4 + 6) / 10 / 2)  # Dr. GRPO: divided by a constant


def test_an_all_masked_batch_gives_a_finite_zero_loss():
    logps = torch.randn(1, 2, 3, requires_grad=True)
    nothing = torch.zeros(1, 2, 3)
    weights = token_weights(nothing.bool(), "sequence", 3) / weight_total(nothing.bool(), "sequence").clamp_min(1)
    loss, stats = GRPO(kl_coef=0.1)(logps, logps.detach() - 1, logps.detach(), torch.randn(1, 2), weights, nothing)
    loss.backward()
    assert loss.item() == 0.0
    assert (logps.grad == 0).all()
    assert all(math.isfinite(float(v)) for v in stats.values())
    assert next_token_loss(logps, nothing).item() == 0.0


def test_an_exploding_ratio_stays_finite():
    logps = torch.full((1, 1, 1), 500.0, requires_grad=True)
    one = torch.ones(1, 1, 1)
    loss, _ = GRPO(kl_coef=0.1)(logps, logps.detach() - 900, logps.detach() + 900, torch.tensor([[-1.0]]), one, one)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logps.grad).all()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"clip_low": 1.5}, "clip_low"),
        ({"dual_clip": 0.9}, "dual_clip"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"reduction": "mean"}, "reduction is 'mean'"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings, key):
    with pytest.raises(ConfigError, match=key):
        GRPO(**settings)


def test_k3_is_that_of_the_papers_framework():
    """EasyR1 clamps the estimate to +-10, so that one token far from the reference does not own the step."""
    d = torch.tensor([0.1, 1.0, 8.0, 19.0])
    logps = torch.zeros(4, requires_grad=True)
    estimate = kl_estimate(logps, d)
    assert estimate.tolist() == pytest.approx([math.exp(0.1) - 1.1, math.e - 2, 10.0, 10.0], rel=1e-4)
    estimate.sum().backward()
    assert logps.grad.tolist() == pytest.approx([1 - math.exp(0.1), 1 - math.e, 0.0, 0.0])
    assert float(kl_estimate(torch.zeros(1), torch.tensor([8.0]), largest=None)) == pytest.approx(math.exp(8) - 9)


def test_the_defaults_are_the_papers():
    """Paper section 4 and EasyR1, its framework; see the docstring of GRPO."""
    default = GRPO()
    assert (default.clip_low, default.clip_high, default.dual_clip) == (0.2, 0.3, 3.0)
    assert (default.kl_coef, default.kl_estimator, default.kl_largest) == (0.01, "k3", 10.0)
    assert (default.scale, default.std_floor, default.reduction) == ("std", 0.0, "token")


@pytest.mark.parametrize("beyond", [25.0, -25.0])
def test_log_ratios_are_held_within_20(beyond):
    held = math.copysign(20.0, beyond)
    advantages, far = torch.tensor([[-1.0 if beyond > 0 else 1.0]]), torch.full((1, 1, 1), beyond)
    loss, _ = clipped_loss(far, advantages, clip_low=0.0, clip_high=1e30, dual_clip=None)
    assert float(loss) == pytest.approx(-float(advantages) * math.exp(held), rel=1e-5)
    loss, _ = cispo_loss(torch.ones(1, 1, 1), far, advantages, clip_high=1e30)
    assert float(loss) == pytest.approx(-float(advantages) * math.exp(held), rel=1e-5)
    estimate = kl_estimate(torch.zeros(1), torch.tensor([beyond]), "k2")
    assert float(estimate) == 200.0


def test_the_ratio_of_a_sequence_is_the_mean_over_its_tokens():
    logps = torch.tensor([[[0.3, 0.5, 9.0], [0.4, 9.0, 9.0]]])
    mask = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    ratio = log_ratio(logps, torch.zeros_like(logps), mask, "sequence")
    assert torch.allclose(ratio, torch.tensor([[[0.4, 0.4, 0.0], [0.4, 0.0, 0.0]]]))


def test_a_ratio_on_the_bound_is_not_caught():
    at = torch.log(torch.tensor([[[1.25]]], dtype=torch.float64))
    for _, caught in (
        clipped_loss(at, torch.tensor([[1.0]]), clip_high=0.25),
        cispo_loss(torch.zeros(1, 1, 1), at, torch.tensor([[1.0]]), 0.25),
    ):
        assert not caught["clip_high"].any()
    at = torch.log(torch.tensor([[[0.75]]], dtype=torch.float64))
    assert not clipped_loss(at, torch.tensor([[-1.0]]), clip_low=0.25)[1]["clip_low"].any()


def test_cispos_loss_by_hand():
    ratio = torch.log(torch.tensor([[[1.5, 4.0]]]))
    logps = torch.tensor([[[-2.0, -0.5]]])
    loss, caught = cispo_loss(logps, ratio, torch.tensor([[3.0]]), clip_high=1.0)
    assert torch.allclose(loss, torch.tensor([[[1.5 * 3 * 2, 2.0 * 3 * 0.5]]]))
    assert caught["clip_high"].tolist() == [[[False, True]]]
