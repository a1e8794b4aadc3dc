"""The rollout contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError, PluginError
from locus_lightning.tasks.base import Task
from locus_lightning.tasks.question_answering import QuestionAnswering
from locus_lightning.types import Generation, Prompt


@dataclass(frozen=True)
class SamplingParams:
    """How to draw a completion.

    Args:
        max_new_tokens: A completion that has not ended by then is truncated.
        temperature: It divides the logits; 0 takes the likeliest token (greedy).
        top_p: Only the smallest set of tokens with this much probability is kept; 1 keeps all.
        top_k: Only this many tokens are kept; 0 keeps all.
        min_new_tokens: A completion cannot end before it has this many tokens; 0 lets it end at once.
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
    """Generates completions from a backbone's policy.

    Attributes:
        exact: whether the engine's log-probabilities are those of the trainer up to rounding. Where they are not, the trainer computes the
            old log-probabilities itself.
        max_gap: the bound, in nats a token, of the mean difference between the two; beyond it training stops. None is no bound.
    """

    exact: bool = True
    max_gap: float | None = None

    def check(self, backbone: Backbone) -> None:  # noqa: B027 - most engines take every backbone
        """Refuse a backbone that the engine cannot serve, before weights are loaded.

        Raises:
            ConfigError: names the settings.
        """

    def prove(self, backbone: Backbone, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:  # noqa: B027 - nothing to prove
        """Show, on a few prompts, that the engine generates from this backbone's policy; called once, before anything depends on it.

        Raises:
            LocusError: it does not; says which of prompts, weights and adapters differs.
        """

    @abstractmethod
    def generate(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[list[Generation]]:
        """``n`` completions of every prompt, in evaluation mode, without gradient.

        Args:
            backbone: the model, with the weights of the policy.
            prompts: token ids, features, and the words and images behind them (``content``), for engines that run elsewhere.
            n: completions a prompt.
            sampling: how to sample.

        Returns:
            For every prompt its ``n`` generations. Their log-probabilities are those of the distribution that was sampled from, before
            top-p and top-k.
        """

    def sync(self, backbone: Backbone) -> None:  # noqa: B027 - an engine that shares the weights has nothing to do
        """Take over the policy's weights; called before every rollout batch."""

    def close(self) -> None:  # noqa: B027 - nothing is held
        """Release what the engine holds; called once, when training or evaluation ends."""


def generate_checked(
    engine: RolloutEngine, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams
) -> list[list[Generation]]:
    """``engine.generate``, with the number of its results checked.

    Raises:
        PluginError: the engine gave fewer or more than were asked for.
        ConfigError: prompt and completion do not fit into the model's context.
    """
    longest, room = max((len(prompt.ids_P) for prompt in prompts), default=0), backbone.context()
    if room is not None and longest + sampling.max_new_tokens > room:
        raise ConfigError(
            f"a prompt of {longest:,} tokens with max_new_tokens {sampling.max_new_tokens:,} is longer than the {room:,} tokens that "
            f"{backbone.checkpoint} reads; lower max_new_tokens or the images' budget."
        )
    generations = engine.generate(backbone, prompts, n, sampling)
    counts = {len(row) for row in generations}
    if len(generations) != len(prompts) or counts - {n}:
        raise PluginError(
            f"the rollout engine {type(engine).__name__} gave {len(generations)} groups of {sorted(counts)} completions for {len(prompts)} prompts of {n}."
        )
    return generations


@dataclass(frozen=True)
class Answer:
    """What a model answered: the whole text, with what the chat template had already written of it."""

    text: str
    prompt: Prompt
    generation: Generation


def ask(engine: RolloutEngine, backbone: Backbone, samples: Sequence[Any], max_new_tokens: int, task: Task | None = None) -> list[Answer]:
    """Ask a model, greedily.

    Args:
        engine: generates.
        backbone: loaded.
        samples: of the task.
        max_new_tokens: of an answer.
        task: what is asked; None: plain questions.
    """
    task = task or QuestionAnswering()
    prompts = backbone.encode([task.messages(sample, backbone.frame(sample.image.size)) for sample in samples])
    generations = generate_checked(engine, backbone, prompts, 1, SamplingParams(max_new_tokens, temperature=0.0))
    return [
        Answer(prompt.opened + backbone.decode(generation.ids_T), prompt, generation)
        for prompt, (generation,) in zip(prompts, generations, strict=True)
    ]
