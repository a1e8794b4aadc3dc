"""The backbone contract: what training needs to know about a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from locus_lightning.boxes import BoxFrame, clip_box, iou
from locus_lightning.errors import ConfigError
from locus_lightning.tasks.parsing import boxes_in, parse_response, write_response
from locus_lightning.types import Completion, CueSample, Generation, Prompt, Question

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import Cache


@dataclass(frozen=True)
class CuePrompt:
    """The words of the task (our wording; the order is the paper's, section 2: full image, cue, instruction, structure).

    ``{unit}`` becomes the frame's own words for its coordinates, such as "pixels". ``text_cue`` takes the place of the cue and the
    instruction where the cue is in words, which become ``{cue}``. ``rationale`` is what supervised
    training puts inside the think block.
    """

    before_image: str = "Image 1: "
    before_cue: str = "\nImage 2: "
    instruction: str = (
        "\nImage 2 was cut out of image 1. Find where it came from and give its bounding box in image 1 as [x1, y1, x2, y2] in {unit}."
    )
    text_cue: str = "\nFind this in image 1: {cue}. Give its bounding box in image 1 as [x1, y1, x2, y2] in {unit}."
    structure: str = " First think inside <think></think>, then give only the box inside <answer></answer>."
    rationale: str = "I look for the part of image 1 that matches image 2."

    def __post_init__(self) -> None:
        try:
            self.instruction.format(unit="pixels")
            self.text_cue.format(unit="pixels", cue="red circle")
        except (KeyError, IndexError, ValueError) as cause:
            raise ConfigError(
                f"prompt.instruction has a placeholder other than {{unit}}, or text_cue one other than {{unit}} and {{cue}} ({cause}); "
                "double braces that are meant."
            ) from None

    def question(self, frame: BoxFrame, cue: str = "") -> str:
        """The text after the two images; after the one image where the cue is in words."""
        words = self.text_cue.format(unit=frame.unit, cue=cue) if cue else self.instruction.format(unit=frame.unit)
        return words + self.structure


@dataclass(frozen=True)
class Convention:
    """How a family of models speaks of boxes.

    Args:
        frame: what the numbers are.
        native: how its own training wrote a box; all forms are read, ``[x1, y1, x2, y2]`` is what the prompt asks for.
        confirmed: whether its authors say so; otherwise the frame is our choice, and reinforcement teaches it.
        budget: the settings that bound an image's tokens.
        packs: whether completions can share a prompt in a packed row.
    """

    frame: str
    native: str
    confirmed: bool
    budget: str
    packs: bool = True


class Backbone(nn.Module, ABC):
    """A vision-language model with its prompt, its frame and its forward passes.

    Constructing one is free: it stores settings. :meth:`check` looks at the checkpoint without loading weights;
    :meth:`load` loads them.
    """

    prompt: CuePrompt
    convention: Convention | None = None
    """What `locus backbones` tells about the family."""
    shares_keys: bool = False
    """Whether decoding may keep a prompt's keys once for all completions: attention goes through ``backbones/attention.py``."""
    weights_on_disk: bool = True
    """Whether the loaded weights can be had again from the checkpoint's name: not those of a toy, nor after a cold start."""

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
    def encode(self, samples: Sequence[CueSample | Question]) -> list[Prompt]:
        """Samples, or plain questions, -> prompts on the model's device, vision features included when the tower is frozen."""

    @abstractmethod
    def encode_lessons(self, groups: Sequence[Sequence[CueSample | Question]]) -> tuple[list[Prompt], list[list[Tensor]]]:
        """For supervised training: plain questions about one image as one group, which is paid for once.

        Args:
            groups: each either one sample, or several questions about the same image.

        Returns:
            A prompt a group, up to where its samples part; and for every sample the ids of what follows before its answer.
        """

    @abstractmethod
    def frame(self, sample: CueSample | Question) -> BoxFrame:
        """The coordinate convention of this model for this sample's image."""

    @abstractmethod
    def tokenize_answer(self, text: str) -> Tensor:
        """Token ids (T,) of a right answer, end-of-sequence token included: the target of supervised training."""

    @abstractmethod
    def decode(self, ids_T: Tensor) -> str:
        """Text of a completion, special tokens left out."""

    @abstractmethod
    def prompt_length(self, sample: CueSample | Question) -> int:
        """Tokens of a sample's prompt, images included; nothing is run."""

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
            logps_BGT float32, zero beyond a completion's end; entropy_BGT likewise, without gradient.
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

    @property
    @abstractmethod
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion."""

    @abstractmethod
    def set_trainable(self, *, vision: bool | None = None) -> None:
        """Choose what gradients reach: adapters or the language model, and the vision side as asked (None: as configured)."""

    @abstractmethod
    def freeze_reference(self) -> None:
        """Fix the reference model: adapter off needs nothing; full fine-tuning takes a frozen copy of the weights as they are now."""

    @abstractmethod
    def saved_parameters(self) -> set[str]:
        """Names of parameters (as in ``state_dict``) that a training checkpoint must hold: what training changed."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write what was trained (adapter, or whole model) and the processor as a Hugging Face folder, in safetensors."""

    @contextmanager
    def sampling(self, *, merge_adapters: bool | None = None) -> Iterator[None]:
        """Evaluation mode, for rollouts.

        Args:
            merge_adapters: decode with adapters added to copies of their weights, which saves the passes through them and costs the
                memory of the copies; None: as the backbone sees fit.
        """
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def read(self, generation: Generation, sample: CueSample) -> Completion:
        """Text and box of a generation; the box goes from this model's frame to original pixels."""
        text = self.decode(generation.ids_T)
        response = parse_response(text)
        box = None if response.box_text is None else self.frame(sample).to_original(response.box_text)
        return Completion(text, box, response.well_formed, generation.truncated, generation)

    def turn(self, sample: CueSample | Question) -> tuple[str | Image, ...]:
        """What the user says: text and images in order; a plain question stands behind its image."""
        if isinstance(sample, Question):
            return (sample.image, "\n" + self._with_boxes(sample.text, sample))
        words = self.prompt
        if sample.cue.text:
            return (words.before_image, sample.image, words.question(self.frame(sample), sample.cue.text))
        return (words.before_image, sample.image, words.before_cue, sample.cue.image, words.question(self.frame(sample)))

    def _with_boxes(self, text: str, question: Question) -> str:
        frame = self.frame(question)
        return text.format(*(frame.to_text(box) for box in question.boxes))

    def right_answer(self, sample: CueSample | Question) -> str:
        """What a perfect model would write."""
        if isinstance(sample, Question):
            return self._with_boxes(sample.answer, sample)
        return write_response(self.prompt.rationale, self.frame(sample).to_text(sample.box))

    def mark(self, question: Question, text: str) -> float:
        """Score in [0, 1] of an answer to a plain question: 1 where it is the right words, or ends with the right verdict; where boxes
        are asked for, the mean over the right boxes of the best IoU among those answered."""
        if question.verdict:
            return float(text.split()[-1:] == [question.verdict])
        if not question.boxes or "{0}" not in question.answer:
            return float(text.strip() == self.right_answer(question))
        frame = self.frame(question)
        answered = [clip_box(frame.to_original(box), question.image.size) for box in boxes_in(text)]
        return sum(max((iou(box, right) for box in answered), default=0.0) for right in question.boxes) / len(question.boxes)
