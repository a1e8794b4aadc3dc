"""The proof, before training, that a server has the trainer's model: its prompts, its weights, its adapters."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.types import Generation, Prompt

if TYPE_CHECKING:
    from locus_lightning.rollout.vllm_rollout import VLLMRollout

log = logging.getLogger("locus_lightning")

_TOKENS, _COMPLETIONS = 32, 2
"""The size of the completions that are compared."""
_LEAST_EFFECT = 3
"""Times the bound by which the adapter of the proof moves log-probabilities, so that leaving it out would show."""
_LARGEST_NOISE = 1e4
"""The noise in an adapter at which the search for such an effect ends."""


def prove(engine: VLLMRollout, backbone: Backbone, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
    """Compare server and trainer on a few completions, without an adapter and with one of noise.

    Every prompt's ids are compared when its completions are read.

    Raises:
        ConfigError: prompts, weights or adapters differ; says which.
    """
    server, bound = engine.server, engine.max_gap
    server.wait_until_ready(engine.wait, "it has not answered yet")
    sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, _TOKENS), min_new_tokens=0)
    plain = engine.complete(backbone, prompts, _COMPLETIONS, sampling, engine.model())
    off_N = _logps(backbone, prompts, plain, sampling, adapter=False)
    gap = _mean_difference(off_N, _sampled(plain))
    if not gap <= bound:  # NaN too
        raise ConfigError(
            f"{server} gives log-probabilities that are {gap:.3g} nats a token from those of {backbone.checkpoint} (rollout.max_gap "
            f"{bound:g}): it serves another model, another type of weights, or log-probabilities before the temperature; start it with the line "
            "that `locus serve` prints."
        )
    scale, effect = 1e-2, 0.0
    while effect < _LEAST_EFFECT * bound and scale < _LARGEST_NOISE:
        scale *= 3
        with backbone.noisy_adapters(scale):
            effect = _mean_difference(_logps(backbone, prompts, plain, sampling), off_N)
    if not effect >= _LEAST_EFFECT * bound:
        raise ConfigError(
            f"an adapter of noise moves the log-probabilities of {backbone.checkpoint} by {effect:.3g} nats a token, too little to tell whether "
            f"{server} applies it; lower rollout.max_gap ({bound:g}), or look at backbone.lora.targets."
        )
    name = f"proof-{uuid.uuid4().hex[:8]}"
    with backbone.noisy_adapters(scale):
        engine.load(backbone, name)
        try:
            moved = engine.complete(backbone, prompts, _COMPLETIONS, sampling, name)
        finally:
            engine.unload(name)
        gap_on, gap_off = (
            _mean_difference(_logps(backbone, prompts, moved, sampling, adapter=on), _sampled(moved)) for on in (True, False)
        )
    if not gap_on <= bound:
        how = "does not apply adapters: its log-probabilities are those without one" if gap_off < gap_on else "applies adapters otherwise"
        raise ConfigError(
            f"{server} {how} ({gap_on:.3g} nats a token from this model with an adapter, {gap_off:.3g} from it without one; rollout.max_gap "
            f"{bound:g})."
        )
    log.info(
        "%s (vLLM %s) has this model: %d prompts have equal ids; log-probabilities differ by %.2g nats a token without an adapter, and by %.2g "
        "with one that moves them by %.2g.", server, server.version(), len(prompts), gap, gap_on, effect,
    )  # fmt: skip


def _logps(
    backbone: Backbone, prompts: Sequence[Prompt], groups: Sequence[Sequence[Generation]], sampling: SamplingParams, *, adapter: bool = True
) -> Tensor:
    """The trainer's log-probabilities of all tokens of some completions, (N,)."""
    completions = [[one.ids_T for one in group] for group in groups]
    with torch.no_grad():
        logps_BGT, _ = backbone.logps(prompts, completions, temperature=sampling.temperature or 1.0, reference=not adapter)
    return torch.cat([logps_BGT[b, g, : len(one.ids_T)] for b, group in enumerate(groups) for g, one in enumerate(group)]).float()


def _sampled(groups: Sequence[Sequence[Generation]]) -> Tensor:
    """The server's, (N,)."""
    return torch.cat([one.logps_T for group in groups for one in group]).float()


def _mean_difference(a_N: Tensor, b_N: Tensor) -> float:
    return float((a_N - b_N).abs().mean())
