"""What a backbone may offer beside what training needs: facts for reports, attention, and what an engine that runs elsewhere is given.

What is not offered is refused in a sentence, or is nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from locus_lightning.errors import ConfigError
from locus_lightning.types import Prompt, Size

if TYPE_CHECKING:
    from PIL.Image import Image


class Offers(nn.Module, ABC):
    """Base of :class:`~locus_lightning.backbones.base.Backbone`."""

    # ---- for strategies that cut weights into pieces ------------------------------------------------------------------

    in_pieces: bool = False
    """Whether this process holds pieces of the weights, which a pass gathers from all processes."""
    whole_weights: Mapping[str, Tensor] | None = None
    """While weights are saved that processes hold pieces of: the whole ones, by the names of ``state_dict``. ``save_pretrained`` writes these."""

    def shardable(self) -> list[tuple[nn.Module, list[nn.Module], list[nn.Parameter]]]:
        """The policy's model, and the reference copy where there is one: each with its layers, and with those parameters that every process keeps
        whole because they are used outside of :meth:`Backbone.logps`. ``logps`` has to run inside the model's ``one_pass`` where it has one.

        Raises:
            ConfigError: the backbone does not offer this.
        """
        raise ConfigError(f"the weights of {type(self).__name__} cannot be cut into pieces; use trainer.strategy ddp.")

    def mark_embeddings(self) -> None:
        """Tell optimisers which parameters are embeddings; called again where parameters were replaced."""

    # ---- for engines that run elsewhere ------------------------------------------------------------------------------

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Ids that are never sampled, such as an image's placeholder."""
        return ()

    def unprocessed(self, prompt: Prompt) -> tuple[list[int], list[Image]]:
        """What an engine that runs elsewhere is sent of a prompt: token ids with one placeholder an image, and the images as the processor is
        given them.

        Raises:
            ConfigError: the backbone does not offer this.
        """
        raise ConfigError(f"{type(self).__name__} cannot say what a prompt was before its images were expanded; use HFRollout.")

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter alone, as peft reads it.

        Raises:
            ConfigError: there is none.
        """
        raise ConfigError(f"{type(self).__name__} has no adapter to save; use HFRollout.")

    @contextmanager
    def noisy_adapters(self, scale: float) -> Iterator[None]:
        """While the context lasts, the adapters' B matrices hold noise of this standard deviation, the same every time."""
        raise ConfigError(f"{type(self).__name__} has no adapters; use HFRollout.")
        yield

    def save_served(self, folder: Path) -> None:
        """Make a folder that an inference server loads: the checkpoint's own files, the processor with this backbone's settings. No weights are
        loaded.

        Raises:
            ConfigError: the backbone does not offer this.
        """
        raise ConfigError(f"{type(self).__name__} cannot be laid out for a server.")

    # ---- facts for reports -------------------------------------------------------------------------------------------

    @abstractmethod
    def model_family(self) -> str:
        """What transformers calls the loaded model's family, such as ``qwen2_5_vl``."""

    def skeleton(self) -> nn.Module | None:
        """The model on the meta device, not quantised and without adapters, for counting; None where there is no such thing."""
        return None

    def decoding_bytes(self, prompt: int, group: int, completion: int) -> int:
        """Bytes that decoding ``group`` completions of one prompt takes, keys, values and logits; 0 where that is not known.

        Args:
            prompt: tokens of the prompt.
            group: completions.
            completion: tokens of a completion, at most.
        """
        return 0

    def prefill_bytes(self, tokens: int) -> int:
        """Bytes that a pass over so many tokens of prompts takes for a moment, beside their keys; 0 where that is not known."""
        return 0

    def merged_bytes(self) -> int:
        """Bytes of a copy, in the model's type, of all weights that an adapter is added to; 0 where there are none."""
        return 0

    def dequantised_bytes(self) -> int:
        """Bytes of a copy of all 4-bit weights in the model's type; 0 where there are none."""
        return 0

    def adapted_layers(self) -> Mapping[str, int]:
        """How many layers of each name carry an adapter."""
        return {}

    def quantised_layers(self) -> int:
        """How many layers hold quantised weights."""
        return 0

    def image_budget(self) -> Mapping[str, Any]:
        """The processor's own numbers that bound an image."""
        return {}

    def attention(self, prompt: Prompt, after: str = "") -> Tensor:
        """Attention from the position that predicts the next token to the prompt's image tokens.

        Args:
            prompt: with one image.
            after: words that the answer is taken to begin with.

        Returns:
            (L, N): mean over heads, by layer.

        Raises:
            ConfigError: the backbone does not offer this.
        """
        raise ConfigError(f"{type(self).__name__} does not report attention.")

    def image_cells(self, prompt: Prompt, size: Size) -> Tensor:
        """What part of its image each image token stands for: boxes (N, 4), original pixels; empty for tokens that stand for none.

        Args:
            prompt: with one image, its pixels still there (:meth:`encode_pixels`).
            size: (width, height) of the image.

        Raises:
            ConfigError: the family does not say.
        """
        raise ConfigError(f"{type(self).__name__} does not say where its image tokens look, so attention cannot be laid over an image.")
