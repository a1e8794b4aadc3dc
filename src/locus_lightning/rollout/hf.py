"""Rollouts with the transformers model itself: one set of weights for policy, reference and sampler."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Literal

import torch

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError
from locus_lightning.rollout.base import RolloutEngine, SamplingParams
from locus_lightning.rollout.decoding import Decoding, prefilled
from locus_lightning.types import Generation, Prompt

log = logging.getLogger(__name__)

AT_ONCE = 32
"""Prompts that are decoded together on a CPU, and at most elsewhere where nothing is known of their keys."""
SHARE = 0.7
"""Of the GPU's free memory, what decoding may plan with."""


Copies = Literal["merged", "dequantized"]
"""Kinds of copies of weights that decoding may multiply with."""


class HFRollout(RolloutEngine):
    """Every prompt is run once, its keys are kept once for all its completions, and all completions are decoded together.

    On CUDA a step of decoding is captured as a graph and replayed. A rollout that does not fit on the GPU is tried again, first without
    copies of weights, then with half as many prompts at once.

    Args:
        prompts_at_once: The number of prompts that are decoded together. ``auto`` takes as many as the GPU's free memory holds, and 32 on a
            CPU.
        merge_adapters: Whether decoding uses copies of the weights with LoRA added. It takes the fewest operations, and costs the memory of
            the copies and, in 16 bits, their rounding: the sampler is further from the update. ``auto`` does so on CUDA where the copies
            fit without more rounds of decoding a rollout batch. Null does so with float32 weights on a CPU only.
        capture: Whether a step is captured as a CUDA graph; null does so on CUDA.
        dequantize: Whether decoding uses copies of 4-bit weights in the model's type, which are otherwise computed anew for every token.
            The copies hold the numbers that bitsandbytes multiplies with, so nothing is rounded; they cost memory, 13 GB for a model of
            7 billion parameters. ``auto`` makes them on CUDA where they fit without more rounds of decoding a rollout batch.
    """

    def __init__(
        self,
        prompts_at_once: int | Literal["auto"] = "auto",
        merge_adapters: bool | Literal["auto"] | None = None,
        capture: bool | None = None,
        dequantize: bool | Literal["auto"] = "auto",
    ) -> None:
        if prompts_at_once != "auto" and prompts_at_once < 1:
            raise ConfigError(f"rollout.prompts_at_once is {prompts_at_once}; it is at least 1, or auto.")
        if merge_adapters is True and dequantize is True:
            raise ConfigError(
                "rollout.merge_adapters and rollout.dequantize are both true; merged adapters are copies already: leave one out."
            )
        self.prompts_at_once, self.merge_adapters, self.capture, self.dequantize = prompts_at_once, merge_adapters, capture, dequantize
        self.card: float | None = None  # bytes of the card to plan for, where it is a smaller one than this (locus preflight)
        self._at_most: int | None = None

    @torch.no_grad()
    def generate(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[list[Generation]]:
        """See :meth:`RolloutEngine.generate`."""
        copies = self.copies(backbone, prompts, n, sampling)
        if copies is not None:
            try:
                with backbone.sampling(merge_adapters=copies == "merged", dequantize=copies == "dequantized"):
                    return self._rounds(backbone, prompts, n, sampling, halve=False)
            except torch.cuda.OutOfMemoryError:
                self.merge_adapters = self.dequantize = False
            torch.cuda.empty_cache()  # behind the handler: the exception holds on to the tensors of what failed
            log.warning("the GPU's memory is full: from here on decoding makes no copies of weights.")
        with backbone.sampling(merge_adapters=None if self.merge_adapters == "auto" else self.merge_adapters):
            return self._rounds(backbone, prompts, n, sampling, halve=True)

    def _rounds(
        self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams, halve: bool
    ) -> list[list[Generation]]:
        """Decode some prompts after the others; with ``halve``, fewer of them where the memory is full."""
        groups: list[list[Generation]] = []
        # no prompts, no groups: a rank's share of the last validation batch can be empty
        at_once = self.at_once(backbone, prompts, n, sampling) if prompts else 1
        while len(groups) < len(prompts):
            some = prompts[len(groups) : len(groups) + at_once]
            try:
                groups += self._decode(backbone, some, n, sampling)
            except torch.cuda.OutOfMemoryError:
                if at_once == 1 or not halve:
                    raise
                at_once = self._at_most = max(1, len(some) // 2)
            if at_once < len(some):  # behind the handler, as above
                torch.cuda.empty_cache()
                log.warning("the GPU's memory is full: from here on %d prompts are decoded at a time.", at_once)
        return groups

    def _decode(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[list[Generation]]:
        capture = self.capture is not False and prompts[0].ids_P.device.type == "cuda"
        return Decoding(backbone, prompts, n, sampling, capture).run()

    def at_once(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams, copies: int = 0) -> int:
        """How many of these prompts are decoded together, beside so many bytes of copies; 0 where not even one is."""
        on_gpu = prompts[0].ids_P.device.type == "cuda"
        wanted = AT_ONCE if self.prompts_at_once == "auto" else self.prompts_at_once
        if on_gpu and (copies or self.prompts_at_once == "auto"):
            fitting = self._that_fit(backbone, prompts, n, sampling, copies)
            wanted = fitting if self.prompts_at_once == "auto" else min(wanted, fitting)
        return min(wanted, self._at_most or wanted)

    def copies(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> Copies | None:
        """The copies of weights that decoding makes; None also where the backbone itself decides (``merge_adapters`` null)."""
        on_gpu = bool(prompts) and prompts[0].ids_P.device.type == "cuda"
        for kind, wanted in self._wanted():
            if wanted is True or (on_gpu and self._cost_no_round(backbone, prompts, n, sampling, kind)):
                return kind
        return None

    def planned_copies(self, backbone: Backbone, on_gpu: bool) -> tuple[bool | Literal["auto"], int]:
        """(whether decoding makes copies of weights, their bytes), as far as the settings tell."""
        for kind, wanted in self._wanted():
            if (size := copied_bytes(backbone, kind)) and (wanted is True or on_gpu):
                return wanted, size
        return False, 0

    def _wanted(self) -> list[tuple[Copies, bool | Literal["auto"]]]:
        """The kinds of copies that the settings allow, with their settings; what is asked for comes first."""
        choices: tuple[tuple[Copies, bool | Literal["auto"] | None], ...] = (
            ("merged", self.merge_adapters),
            ("dequantized", self.dequantize),
        )
        return sorted(((kind, wanted) for kind, wanted in choices if wanted), key=lambda choice: choice[1] == "auto")

    def _cost_no_round(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams, copies: Copies) -> bool:
        size = copied_bytes(backbone, copies)
        return size > 0 and takes_no_more_rounds(
            len(prompts), self.at_once(backbone, prompts, n, sampling), self.at_once(backbone, prompts, n, sampling, size)
        )

    def _that_fit(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams, copies: int) -> int:
        """Prompts whose keys and logits the GPU's free memory holds, beside copies; at least one where there are no copies."""
        longest = max(len(prompt.ids_P) for prompt in prompts)
        each = backbone.decoding_bytes(longest, n, sampling.max_new_tokens)
        if each == 0:
            return 0 if copies else AT_ONCE
        if backbone.shares_keys:
            prefill = backbone.prefill_bytes(prefilled(len(prompts), longest))
        else:  # such prompts are run in one pass
            each, prefill = each + backbone.prefill_bytes(longest), 0
        device = prompts[0].ids_P.device
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)  # of torch 2.8 and later
        of_ours = min(share * total, self.card or math.inf) - reserved  # a process may be held to a share of the card
        unused = reserved - torch.cuda.memory_allocated(device)
        return that_fit(min(free, of_ours) + unused, copies + prefill, each, bool(copies))


def copied_bytes(backbone: Backbone, copies: Copies | None) -> int:
    """Bytes of copies of a kind."""
    return 0 if copies is None else backbone.merged_bytes() if copies == "merged" else backbone.dequantised_bytes()


def that_fit(free: float, taken: float, each: float, copies: bool) -> int:
    """How many prompts are decoded together: those that take a share of the free memory, less what is taken by other things. At least one,
    but beside copies of weights, which can be left out."""
    return max(0 if copies else 1, int(SHARE * (free - taken) / each))


def takes_no_more_rounds(prompts: int, at_once: int, beside_copies: int) -> bool:
    """Whether decoding so many prompts takes no more rounds where copies of weights leave room for ``beside_copies`` at once."""
    return beside_copies > 0 and math.ceil(prompts / beside_copies) <= math.ceil(prompts / at_once)
