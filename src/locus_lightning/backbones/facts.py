"""Facts about a loaded Hugging Face model, for reports, and its attention, for analysis."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from locus_lightning.backbones import loading
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.decoding_weights import dequantised_bytes, merged_bytes
from locus_lightning.backbones.encoding import Encoding
from locus_lightning.backbones.shared_prefix import attention
from locus_lightning.types import Prompt

LOGITS_IN_SAMPLING = 4
"""Copies of the logits in float32 that sampling a token has at its peak: logits, log-probabilities, probabilities, clocks."""


def prefill_numbers(hidden: int, intermediate: int) -> int:
    """Numbers a token that a pass over prompts takes for a moment, keys and values left out: our own count of what is inside a decoder layer,
    which agrees with what torch allocated for models of 7 M parameters."""
    return max(7 * hidden + 3 * intermediate, 3 * hidden + 4 * intermediate)  # at the attention, at the gated product


class Facts(Encoding):
    """What commands and callbacks ask about a model beside its forward passes; :class:`HFBackbone` adds those."""

    model: Any
    lora: LoRA | None
    trust_remote_code: bool

    @abstractmethod
    def last_hidden(self, prompt: Prompt, after: str = "") -> Tensor:
        """Last hidden state (D,) of one prompt, with the words ``after`` behind it."""

    @torch.no_grad()
    def next_token_logps(self, prompt: Prompt) -> Tensor:
        """Log-probabilities (V,) of what follows a prompt, adapters on, in float32 on the CPU."""
        return self.hf.get_output_embeddings()(self.last_hidden(prompt)).float().log_softmax(-1).cpu()  # type: ignore[no-any-return]

    def merge_adapters(self) -> None:
        """Fold the adapters into the weights for good; nothing where there are none."""
        if self.lora is not None:
            self.model, self.lora, self.adapter_rank = self.model.merge_and_unload(), None, 0

    def model_family(self) -> str:
        """See :meth:`Backbone.model_family`."""
        return str(self.hf.config.model_type)

    def skeleton(self) -> nn.Module | None:
        """See :meth:`Backbone.skeleton`."""
        skeleton: nn.Module = loading.skeleton(self.hf.config, self.trust_remote_code)
        return skeleton

    def decoding_bytes(self, prompt: int, group: int, completion: int) -> int:
        """See :meth:`Backbone.decoding_bytes`; 0 for an architecture that does not name its sizes as others do."""
        text: Any = self.hf.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", 0)
        width = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // max(1, getattr(text, "num_attention_heads", 1))
        position = 2 * int(getattr(text, "num_hidden_layers", 0)) * int(heads or 0) * int(width) * self.dtype.itemsize
        logits = LOGITS_IN_SAMPLING * 4 * getattr(text, "vocab_size", 0)
        return position * ((1 if self.shares_keys else group) * prompt + group * completion) + group * logits if position else 0

    def prefill_bytes(self, tokens: int) -> int:
        """See :meth:`Backbone.prefill_bytes`."""
        text: Any = self.hf.config.get_text_config()
        return tokens * prefill_numbers(getattr(text, "hidden_size", 0), getattr(text, "intermediate_size", 0) or 0) * self.dtype.itemsize

    def merged_bytes(self) -> int:
        """See :meth:`Backbone.merged_bytes`."""
        return merged_bytes(self.model, self.dtype)

    def dequantised_bytes(self) -> int:
        """See :meth:`Backbone.dequantised_bytes`."""
        return dequantised_bytes(self.model, self.dtype)

    def adapted_layers(self) -> Mapping[str, int]:
        """See :meth:`Backbone.adapted_layers`."""
        return Counter(name.rsplit(".", 1)[-1] for name, module in self.model.named_modules() if hasattr(module, "lora_A"))

    def quantised_layers(self) -> int:
        """See :meth:`Backbone.quantised_layers`."""
        return len(loading.quantised_linears(self.hf))

    def image_budget(self) -> Mapping[str, Any]:
        """See :meth:`Backbone.image_budget`."""
        names = ("size", "crop_size", "image_grid_pinpoints", "max_patches", "max_image_size")
        images = self.processor.image_processor
        return {name: value for name in names if (value := getattr(images, name, None)) is not None}

    def image_tokens(self, prompt: Prompt) -> Tensor:
        """Positions (N,) of a prompt's image tokens."""
        return torch.isin(prompt.ids_P, self._banned(prompt.ids_P.device)).nonzero()[:, 0]

    @torch.no_grad()
    def attention(self, prompt: Prompt, after: str = "") -> Tensor:
        """See :meth:`Backbone.attention`."""
        layers = self.attention_layers()
        with attention.watch(layers) as watched:
            self.last_hidden(prompt, after)
        return torch.stack([watched.found[i][0, self.image_tokens(prompt)] for i in range(len(layers))]).cpu()

    def attention_layers(self) -> list[nn.Module]:
        """The language model's attention layers, first to last."""
        modules = loading.language_model(self.hf).modules()
        return sorted((m for m in modules if hasattr(m, "layer_idx") and hasattr(m, "q_proj")), key=lambda m: m.layer_idx)

    @classmethod
    def family_parameters(cls) -> list[str]:
        """Names of the constructor arguments that only this family has, such as its frame: all that a saved folder may decide."""
        common = _common_parameters()
        parameters = inspect.signature(cls.__init__).parameters.items()
        return [name for name, p in parameters if name not in common and p.kind is not inspect.Parameter.VAR_KEYWORD]

    def family_settings(self) -> dict[str, Any]:
        """Settings that only this family has, such as its frame: what a saved folder has to remember."""
        return {name: self.constructor_arguments[name] for name in self.family_parameters()}


def _common_parameters() -> Mapping[str, inspect.Parameter]:
    from locus_lightning.backbones.hf import HFBackbone

    return inspect.signature(HFBackbone.__init__).parameters
