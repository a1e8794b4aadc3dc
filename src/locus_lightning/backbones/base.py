"""The backbone contract: what training, evaluation and the commands ask of a model. A backbone knows nothing of tasks."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.offers import Offers
from locus_lightning.boxes import BoxFrame
from locus_lightning.errors import ConfigError
from locus_lightning.types import Content, Prepared, Prompt, Size

if TYPE_CHECKING:
    from transformers import Cache


class Backbone(Offers):
    """A vision-language model with its frame and its forward passes.

    Constructing one is free: it stores settings. :meth:`check` looks at the checkpoint without loading weights; :meth:`load` loads them.

    Attributes:
        checkpoint: what was loaded, as the user named it.
        dtype: type of the weights that are not quantised.
        adapter_rank: rank of the LoRA adapters; 0 where all weights train.
        quantize: how the language model is quantised, or None.
        train_vision: whether the vision side trains too.
        gradient_checkpointing: whether activations are recomputed in the backward pass.
        remembers: what the checkpoint's folder says of the task that it was trained for (see ``Task.adopt``).
    """

    checkpoint: str
    dtype: torch.dtype = torch.float32
    adapter_rank: int = 0
    quantize: str | None = None
    train_vision: bool = False
    gradient_checkpointing: bool = False
    remembers: Mapping[str, Any] = {}
    convention: Convention | None = None
    """What `locus backbones` tells about the family."""
    shares_keys: bool = False
    """Whether decoding may keep a prompt's keys once for all completions: attention goes through ``backbones/attention.py``."""
    entropy_gradient: bool = False
    """Whether entropies of :meth:`logps` carry a gradient, which costs copies of the logits."""
    load_on: torch.device | None = None
    """Where weights are loaded to; None: the CPU's memory, from where a trainer moves them."""
    weights_on_disk: bool = True
    """Whether the loaded weights can be had again from the checkpoint's name: not those of a toy, nor after a cold start."""

    constructor_arguments: Mapping[str, Any]
    """What the backbone was built with, defaults included, so that a saved folder can remember it whatever a subclass makes of it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Backbone:
        """Record the constructor's arguments."""
        backbone: Backbone = super().__new__(cls)
        record_arguments(backbone, cls, args, kwargs)
        return backbone

    @abstractmethod
    def check(self) -> None:
        """Find what the user got wrong before weights are loaded.

        Raises:
            CheckpointError: the checkpoint is missing or of another family.
            ConfigError: settings that do not go together.
        """

    @property
    @abstractmethod
    def loaded(self) -> bool:
        """Whether weights are in memory."""

    @abstractmethod
    def load(self) -> None:
        """Load processor and weights, quantise, add adapters. A second call does nothing."""

    @abstractmethod
    def encode(self, contents: Sequence[Content]) -> list[Prompt]:
        """User messages -> prompts on the model's device, vision features included when the tower is frozen."""

    def prepare(self, contents: Sequence[Content]) -> list[Prepared] | None:
        """The part of :meth:`encode` that needs neither weights nor a GPU, so that a loader's workers can do it; None where there is none."""
        return None

    def encode_prepared(self, prepared: Sequence[Prepared]) -> list[Prompt]:
        """The rest of :meth:`encode`; a backbone that prepares nothing refuses."""
        raise ConfigError(f"{type(self).__name__} does not prepare prompts apart from encoding them.")

    @abstractmethod
    def encode_pixels(self, contents: Sequence[Content]) -> list[Prompt]:
        """As :meth:`encode`, with pixels in place of their features."""

    @abstractmethod
    def encode_shared(self, groups: Sequence[Sequence[Content]]) -> tuple[list[Prompt], list[list[Tensor]]]:
        """For supervised training: several messages about one image as one group, whose image is paid for once.

        Args:
            groups: each either one message, or several that begin with the same image and differ in their words.

        Returns:
            A prompt a group, up to where its messages part; and for every message the ids of what follows before its answer.
        """

    @abstractmethod
    def frame(self, size: Size) -> BoxFrame:
        """The coordinate convention of this model for an image of (width, height) pixels."""

    @abstractmethod
    def tokenize_answer(self, text: str) -> Tensor:
        """Token ids (T,) of a right answer, with what the chat template writes behind it: the target of supervised training."""

    @abstractmethod
    def decode(self, ids_T: Tensor) -> str:
        """Text of a completion, special tokens left out."""

    @abstractmethod
    def prompt_length(self, content: Content) -> int:
        """Tokens of a message's prompt, images included; nothing is run."""

    @abstractmethod
    def describe_prompt(self, prompt: Prompt) -> str:
        """A prompt as text, for people: runs of image tokens are counted."""

    @abstractmethod
    def row_tokens(self, prompt: int, group: int, completion: int) -> int:
        """Tokens that a forward pass spends on a group: one shared prompt, or one prompt a completion."""

    @abstractmethod
    def logps(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Tensor]],
        *,
        temperature: float = 1.0,
        reference: bool = False,
        share_prefix: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of completions under the policy, or under the reference model.

        Args:
            prompts: B prompts.
            completions: for each prompt its G completions, each (T,) ids; ragged.
            temperature: divides the logits, as in sampling.
            reference: the frozen reference instead of the policy.
            share_prefix: one packed row a group (each prompt is paid for once), or the plain batch; None: the backbone's setting.

        Returns:
            logps_BGT float32, zero beyond a completion's end; entropy_BGT likewise, without gradient unless ``entropy_gradient``.
        """

    @abstractmethod
    def features_of(self, prompts: Sequence[Prompt], *, reference: bool = False) -> list[tuple[Tensor, ...]]:
        """Image features of every prompt, (tokens, D) an image: those computed at :meth:`encode`, or fresh ones of the policy's
        tower, with gradient, or of the reference's."""

    @abstractmethod
    def hidden(
        self,
        ids_RS: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        features: Sequence[Tensor] = (),
        *,
        cache: Cache | None = None,
        reference: bool = False,
    ) -> Tensor:
        """Last hidden states (R, S, D). ``mask``: (R, S) over cache and input, or (R, 1, S, S) bool; None where the cache knows."""

    @abstractmethod
    def next_token_logits(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits (N, V), float32, divided by ``temperature``, image placeholder ids at -inf: the distribution that is
        sampled from and the one that log-probabilities are taken of."""

    def context(self) -> int | None:
        """Tokens that the model reads, prompt and completion together; None where it does not say."""
        return None

    @property
    @abstractmethod
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion."""

    @abstractmethod
    def set_trainable(self, *, vision: bool | None = None) -> None:
        """Choose what gradients reach: adapters or the language model, and the vision side as asked (None: as configured)."""

    def parameter_groups(self) -> list[Any]:
        """What the optimiser is given: parameters that train, or groups of them with ``lr_factor``, how many times the rate they get."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @abstractmethod
    def freeze_reference(self, *, moves: bool = False) -> None:
        """Fix the reference model: adapter off needs nothing; full fine-tuning takes a frozen copy of the weights as they are now.

        Args:
            moves: whether :meth:`move_reference` will be called. Adapters are then copied too, and checkpoints hold the copies.
        """

    def move_reference(self, mixing: float) -> None:
        """Make the reference ``mixing`` x policy + (1 - ``mixing``) x reference.

        Raises:
            ConfigError: the backbone does not offer this, or holds no copy.
        """
        raise ConfigError(f"{type(self).__name__} has no reference that moves; set model.reference_sync: null.")

    def empty_cache(self) -> Cache:
        """What the first pass of a rollout fills; by default keys and values of every layer."""
        from transformers import DynamicCache

        return DynamicCache()

    @abstractmethod
    def saved_parameters(self) -> set[str]:
        """Names of parameters (as in ``state_dict``) that a training checkpoint must hold: what training changed."""

    @abstractmethod
    def save_pretrained(self, folder: Path, remember: Mapping[str, Any] | None = None) -> None:
        """Write what was trained (adapter, or whole model) and the processor as a Hugging Face folder, in safetensors.

        Args:
            folder: where to.
            remember: what the folder should say of the task (see ``Task.remember``).
        """

    # ---- modes -------------------------------------------------------------------------------------------------------

    @contextmanager
    def sampling(self, *, merge_adapters: bool | None = None, dequantize: bool = False) -> Iterator[None]:
        """Evaluation mode, for rollouts.

        Args:
            merge_adapters: decode with adapters added to copies of their weights, which saves the passes through them, and costs the
                memory of the copies and in 16 bits their rounding; None: as the backbone sees fit.
            dequantize: decode with copies of 4-bit weights in the model's type, which costs :meth:`dequantised_bytes` and rounds nothing.
        """
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)


def record_arguments(backbone: Backbone, kind: type[Backbone], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Set ``constructor_arguments``. Arguments that do not fit are left to the constructor, which names them."""
    try:
        bound = inspect.signature(kind.__init__).bind(backbone, *args, **kwargs)
    except TypeError:
        return
    bound.apply_defaults()
    object.__setattr__(backbone, "constructor_arguments", dict(bound.arguments))
