"""The rollout contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError
from locus_lightning.types import Generation, Prompt


@dataclass(frozen=True)
class Sampling:
    """How to draw a completion.

    Args:
        max_new_tokens: a completion that has not ended by then is truncated.
        temperature: divides the logits; 0 takes the likeliest token (greedy).
        top_p: keep the smallest set of tokens with this much probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        min_new_tokens: a completion cannot end before it has this many; 0 lets it end at once.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it is at least 1.")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError(f"min_new_tokens is {self.min_new_tokens}; it lies between 0 and max_new_tokens {self.max_new_tokens}.")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(
                f"sampling has temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}; "
                "give temperature >= 0, 0 < top_p <= 1, top_k >= 0."
            )


class RolloutEngine(ABC):
    """Draws completions from a backbone's policy."""

    @abstractmethod
    def generate(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Generation]]:
        """``n`` completions of every prompt, in evaluation mode, without gradient.

        The log-probabilities are those of the distribution that was sampled from, before top-p and top-k.
        """
