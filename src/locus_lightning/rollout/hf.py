"""Rollouts with the transformers model itself: one set of weights for policy, reference and sampler."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError
from locus_lightning.rollout.base import RolloutEngine, SamplingParams
from locus_lightning.rollout.decoding import Decoding
from locus_lightning.types import Generation, Prompt

log = logging.getLogger(__name__)

AT_ONCE = 32
"""Prompts that are decoded together on a CPU, and at most elsewhere where nothing is known of their keys."""
SHARE = 0.7
"""Of the GPU's free memory, what decoding may plan with."""


class HFRollout(RolloutEngine):
    """Every prompt is run once, its keys are kept once for all its completions, and all completions are decoded together.

    On CUDA a step of decoding is captured as a graph and replayed. A rollout that does not fit on the GPU is tried again with half as many
    prompts at once.

    Args:
        prompts_at_once: The number of prompts that are decoded together. ``auto`` takes as many as the GPU's free memory holds, and 32 on a
            CPU.
        merge_adapters: Whether decoding uses copies of the weights with LoRA added. It is faster, and costs the memory of the copies
            and, in 16 bits, their rounding. Null does so with float32 weights on a CPU only.
        capture: Whether a step is captured as a CUDA graph; null does so on CUDA.
    """

    def __init__(
        self, prompts_at_once: int | Literal["auto"] = "auto", merge_adapters: bool | None = None, capture: bool | None = None
    ) -> None:
        if prompts_at_once != "auto" and prompts_at_once < 1:
            raise ConfigError(f"rollout.prompts_at_once is {prompts_at_once}; it is at least 1, or auto.")
        self.prompts_at_once, self.merge_adapters, self.capture = prompts_at_once, merge_adapters, capture
        self._at_most: int | None = None

    @torch.no_grad()
    def generate(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[list[Generation]]:
        """See :meth:`RolloutEngine.generate`."""
        groups: list[list[Generation]] = []
        with backbone.sampling(merge_adapters=self.merge_adapters):
            # no prompts, no groups: a rank's share of the last validation batch can be empty
            at_once = self.at_once(backbone, prompts, n, sampling) if prompts else 1
            while len(groups) < len(prompts):
                some = prompts[len(groups) : len(groups) + at_once]
                try:
                    groups += self._decode(backbone, some, n, sampling)
                except torch.cuda.OutOfMemoryError:
                    if at_once == 1:
                        raise
                    at_once = self._at_most = max(1, len(some) // 2)
                if at_once < len(some):  # behind the handler: the exception holds on to the tensors of what failed
                    torch.cuda.empty_cache()
                    log.warning("the GPU's memory is full: from here on %d prompts are decoded at a time.", at_once)
        return groups

    def _decode(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[list[Generation]]:
        capture = self.capture is not False and prompts[0].ids_P.device.type == "cuda"
        return Decoding(backbone, prompts, n, sampling, capture).run()

    def at_once(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> int:
        """How many of these prompts are decoded together."""
        if self.prompts_at_once != "auto":
            wanted = self.prompts_at_once
        elif prompts[0].ids_P.device.type != "cuda":
            wanted = AT_ONCE
        else:
            wanted = self._that_fit(backbone, prompts, n, sampling)
        return min(wanted, self._at_most or wanted)

    @staticmethod
    def _that_fit(backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> int:
        """Prompts whose keys and logits the GPU's free memory holds."""
        each = backbone.decoding_bytes(max(len(prompt.ids_P) for prompt in prompts), n, sampling.max_new_tokens)
        if each == 0:
            return AT_ONCE
        device = prompts[0].ids_P.device
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)  # of torch 2.8 and later
        of_ours = share * total - reserved  # a process may be held to a share of the card
        unused = reserved - torch.cuda.memory_allocated(device)
        return max(1, int(SHARE * (min(free, of_ours) + unused) / each))
