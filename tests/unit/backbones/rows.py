"""What the tests of packing and decoding share."""

from __future__ import annotations

import torch

from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.hf import HFRollout
from tests.conftest import contents

SIX = SamplingParams(max_new_tokens=6, temperature=0.8)


def rollouts(backbone, samples, n=3, sampling=SIX, seed=0, **settings):
    torch.manual_seed(seed)
    prompts = backbone.encode(contents(backbone, samples))
    groups = HFRollout(**settings).generate(backbone, prompts, n, sampling)
    return prompts, groups, [[g.ids_T for g in group] for group in groups]


def ragged(completions):
    """Cut completions to different lengths, so that rows are ragged whatever was sampled."""
    return [[ids[: 1 + (b + 2 * g) % len(ids)] for g, ids in enumerate(group)] for b, group in enumerate(completions)]


def both_layouts(backbone, prompts, completions, *, reference=False, train=True):
    """(log-probs, entropy, gradients) of the packed row and of the plain batch."""
    results = []
    for share_prefix in (True, False):
        backbone.zero_grad()
        with torch.set_grad_enabled(train):
            logps, entropy = backbone.logps(prompts, completions, temperature=0.8, share_prefix=share_prefix, reference=reference)
        if train:
            (logps * torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)).sum().backward()
        grads = {n: p.grad.clone() for n, p in backbone.named_parameters() if p.grad is not None}
        results.append((logps.detach(), entropy, grads))
    return results
