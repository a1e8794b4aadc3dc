"""Conformance checks of what a model is trained with: backbones, rollout engines, objectives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from locus_lightning.backbones.base import Backbone
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.backbones.toy.parts import toy_tokenizer
from locus_lightning.objectives.advantages import token_weights
from locus_lightning.objectives.base import Objective
from locus_lightning.rollout.base import RolloutEngine, SamplingParams, generate_checked
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.types import Content

__all__ = ["check_backbone", "check_objective", "check_rollout", "toy_tokenizer"]

_SIZES = ((120, 90), (64, 150), (33, 40))


def _contents() -> list[Content]:
    """Messages of two images each, of different shapes, and of different length."""
    rng = np.random.default_rng(0)
    contents: list[Content] = []
    for k, (width, height) in enumerate(_SIZES):
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        contents.append(("1: ", image, " 2: ", image.crop((2, 2, 30, 30)), " Where is 2?" + " Look again." * k))
    return contents


def check_backbone(backbone: Backbone) -> None:
    """A backbone samples what it scores, whatever stands beside it, sees both images, and reads the boxes that it writes.

    Args:
        backbone: not loaded yet. On a toy checkpoint with ``dtype="float64"`` the bounds are tight; a coarser type gets wider ones.
    """
    backbone.check()
    backbone.load()
    backbone.eval()
    exact = backbone.dtype == torch.float64
    bound = 1e-6 if exact else 1e-3 if backbone.dtype == torch.float32 else 0.3
    for size in _SIZES:
        frame, box = backbone.frame(size), (3.0, 4.0, 20.0, 25.0)
        numbers = [float(number) for number in frame.to_text(box).strip("[]").split(",")]
        error = max(abs(a - b) for a, b in zip(frame.to_original(numbers), box, strict=True))
        assert error <= max(frame.resolution), f"a box of an image of {size} comes back {error:.1f} pixels away: {frame.to_text(box)}"
    answer = "<think>a</think><answer>[1, 2, 3, 4]</answer>"
    read = backbone.decode(backbone.tokenize_answer(answer))
    assert read.strip() == answer, f"an answer is decoded as {read!r}: the answer's tags must survive"
    with torch.no_grad():
        check_rollout(HFRollout(), backbone, bound)
        prompts = backbone.encode(_contents())
        answers = [[backbone.tokenize_answer("[1, 2]"), backbone.tokenize_answer("a longer answer")] for _ in prompts]
        packed, _ = backbone.logps(prompts, answers, share_prefix=True)
        plain, _ = backbone.logps(prompts, answers, share_prefix=False)
        assert torch.allclose(packed, plain, atol=bound), f"packed rows and plain ones differ by {float((packed - plain).abs().max()):.2g}"
        if isinstance(backbone, HFBackbone):
            _check_against_the_models_own_pass(backbone, bound)
        for b, content in enumerate(_contents()):
            alone, _ = backbone.logps(backbone.encode([content]), answers[b : b + 1])
            difference = float((alone[0] - packed[b, :, : alone.shape[-1]]).abs().max())
            assert difference <= bound, f"a prompt alone and among others differ by {difference:.2g}: positions or padding are wrong"
            for place in (1, 3):
                changed = tuple(Image.new("RGB", part.size) if k == place else part for k, part in enumerate(content))  # type: ignore[union-attr]
                other, _ = backbone.logps(backbone.encode([changed]), answers[b : b + 1])
                assert not torch.allclose(alone, other, atol=1e-12 if exact else 1e-6), (
                    f"image {(place + 1) // 2} of a message is not looked at"
                )


def _check_against_the_models_own_pass(backbone: HFBackbone, bound: float) -> None:
    """The next token's probabilities as the model computes them from the processor's tensors by itself."""
    for prepared in backbone.prepare(_contents()):
        inputs = {key: value.to(backbone.device) for key, value in prepared.inputs.items()}
        inputs = {key: value.to(backbone.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        theirs = backbone.hf(**inputs, use_cache=False).logits[0, -1].double().log_softmax(-1)
        (prompt,) = backbone.encode_prepared([prepared])
        ours = backbone.hf.get_output_embeddings()(backbone.last_hidden(prompt)).double().log_softmax(-1)
        difference = float((theirs - ours).abs().max())
        assert difference <= bound, (
            f"the model's own pass over a prompt and this backbone's differ by {difference:.2g}: positions or features are wrong"
        )


def check_rollout(engine: RolloutEngine, backbone: Backbone, bound: float = 1e-3) -> None:
    """An engine gives as many completions as are asked for, ends them where they end, and tells the probabilities that it sampled with.

    Args:
        engine: to be checked.
        backbone: loaded, with the weights that the engine is to use.
        bound: of the difference between the engine's log-probabilities and the trainer's, where the engine calls itself exact.
    """
    prompts, temperature = backbone.encode(_contents()), 0.8
    engine.sync(backbone)
    sampling = SamplingParams(6, temperature=temperature)
    groups = generate_checked(engine, backbone, prompts, 3, sampling)
    for made in (one for group in groups for one in group):
        ids = made.ids_T.tolist()
        assert 1 <= len(ids) <= 6, f"a completion has {len(ids)} tokens; 1 to 6 were asked for"
        assert len(ids) == len(made.logps_T), "there is not one log-probability for each token"
        assert not set(ids[:-1]) & set(backbone.eos_ids), f"a completion goes on behind its end: {ids}"
        assert made.truncated == (ids[-1] not in backbone.eos_ids), "`truncated` is true where no end-of-sequence token was sampled"
    logps, _ = backbone.logps(prompts, [[one.ids_T for one in group] for group in groups], temperature=temperature)
    for b, group in enumerate(groups):
        for g, one in enumerate(group):
            difference = float((logps[b, g, : len(one.logps_T)] - one.logps_T.to(logps)).abs().max())
            assert difference <= bound or not engine.exact, f"the engine's log-probabilities are {difference:.2g} from the trainer's"
    greedy = replace(sampling, temperature=0.0)
    first, second = (generate_checked(engine, backbone, prompts, 1, greedy) for _ in range(2))
    assert all(torch.equal(a[0].ids_T, b[0].ids_T) for a, b in zip(first, second, strict=True)), (
        "greedy completions differ from call to call"
    )


def check_objective(objective: Objective) -> None:
    """An objective's loss is finite, ignores what is masked, moves good answers up and bad ones down, and is still where advantages are 0."""
    torch.manual_seed(0)
    rewards_BG = torch.rand(3, 4)
    advantages_BG = objective.advantages(rewards_BG)
    assert advantages_BG.shape == rewards_BG.shape, f"advantages have shape {tuple(advantages_BG.shape)}, rewards {tuple(rewards_BG.shape)}"
    assert not objective.advantages(torch.full((2, 4), 0.3)).any(), "a group whose rewards are equal must have advantages of exactly 0"
    mask_BGT = torch.arange(5) < torch.randint(1, 6, (3, 4))[..., None]
    weights_BGT = token_weights(mask_BGT, objective.reduction, 5) / 12
    old_BGT = -2 * torch.rand(3, 4, 5) * mask_BGT
    reference_BGT = old_BGT.clone() if objective.kl_coef > 0 else None

    def loss_of(advantages_BG: torch.Tensor, behind: float = 0.0) -> tuple[float, torch.Tensor]:
        logps_BGT = torch.where(mask_BGT, old_BGT, behind).requires_grad_()
        more = {"sampled_logps_BGT": old_BGT, "entropy_BGT": torch.zeros_like(old_BGT)}
        loss, figures = objective(logps_BGT, old_BGT, reference_BGT, advantages_BG, weights_BGT, mask_BGT, **more)
        assert loss.dim() == 0, "the loss is not a single number"
        assert all(torch.isfinite(value).all() for value in (loss, *figures.values())), "loss or figures are not finite"
        (gradient,) = torch.autograd.grad(loss, logps_BGT)
        return float(loss.detach()), gradient

    loss, gradient = loss_of(advantages_BG)
    other, _ = loss_of(advantages_BG, behind=-7.0)
    assert abs(loss - other) < 1e-6, "tokens behind the end of a completion change the loss"
    assert not gradient[~mask_BGT].any(), "tokens behind the end of a completion have a gradient"
    direction = gradient * advantages_BG[..., None] * mask_BGT
    assert float(direction.sum()) < 0, "a step against the gradient does not raise the probability of better answers"
    _, still = loss_of(torch.zeros_like(advantages_BG))
    assert float(still.abs().max()) < 1e-6, "there is a gradient where all advantages are 0 and the policy has not moved"
