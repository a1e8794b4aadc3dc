"""The records that pass from one step to the next. Frozen, no logic.

Shapes are named by suffix, here and everywhere:

====  =======================================================================
B     prompts in a batch (one prompt = one cue sample)
G     rollouts (completions) of one prompt: its *group*
T     tokens of a completion, padded to the longest of the batch
P     tokens of a prompt
R, S  rows of a packed forward pass and their length
N     selected positions, flattened
V, D  vocabulary, hidden width
====  =======================================================================

A *box* is ``(x1, y1, x2, y2)``, floats, original-image pixels, half-open, unless its name says
otherwise: ``box_model`` (a model's own frame), ``box_text`` (the numbers a model wrote).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Box = tuple[float, float, float, float]
IntBox = tuple[int, int, int, int]
Size = tuple[int, int]
"""(width, height) in pixels, the order of PIL."""

SizeBin = Literal["tiny", "small", "medium", "large"]


@dataclass(frozen=True, slots=True)
class SceneObject:
    """An annotated object of an image.

    ``box`` is in original pixels; ``id`` is unique within its annotation file, and with ``image_id`` within the data set.
    """

    box: Box
    label: str = ""
    id: int = 0
    image_id: int = 0


@dataclass(frozen=True, slots=True)
class CueWindow:
    """Where to crop, before anything is cropped.

    ``box`` is the final, clipped, integer window and therefore the exact answer (PAPER section 4,
    decision 1 of ours); ``scale`` resizes the cue image after cropping; ``object_box`` is the
    object's own box where there is one. ``facts`` are what a sampler tells a task beside the window:
    plain values by name, which a corpus keeps.
    """

    box: IntBox
    size_bin: SizeBin
    scale: float = 1.0
    object_box: Box | None = None
    label: str = ""
    object_id: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Cue:
    """A cue: the crop the model is shown in training, never at inference.

    Where ``text`` is given, the model is shown these words instead of the crop (the paper's text-cue control).
    """

    image: Image
    window: CueWindow
    text: str = ""


Content = tuple["str | Image", ...]
"""What a user message says: words and images, in order."""


@dataclass(frozen=True)
class Sample:
    """One example of a task, whatever the task is.

    Args:
        id: unique in the data set.
        image: the picture it is about, RGB.
        quarantined: (path, reason) of images that were skipped to arrive at this sample.
        task: which task of a mixture it belongs to; empty where a run has one task.
    """

    id: str
    image: Image
    quarantined: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)
    task: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class CueSample(Sample):
    """One example of cue search: find ``cue`` in ``image``.

    Args:
        cue: the crop, or words.
        box: the answer, original pixels.
        others: further windows of the same image, for tasks that show several cues.
    """

    cue: Cue
    box: Box
    others: tuple[CueWindow, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Question(Sample):
    """A plain question about one image with its right answer: a supervised example, or an item of a benchmark.

    Args:
        text: the question. It holds ``{0}``, ``{1}``, ... where ``boxes`` go, which are written in the model's own frame; braces that are
            meant literally are doubled.
        answer: the right answer, in the same form.
        boxes: original pixels.
        kind: the kind of question, by which figures are grouped.
        verdict: the last word of an answer that leads up to it. Where it is given, an answer is correct if its last word equals it.
    """

    text: str
    answer: str = ""
    boxes: tuple[Box, ...] = ()
    kind: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Prompt:
    """A user message as a model reads it; unpadded, padded only at a forward pass.

    Args:
        text: the message after the chat template.
        ids_P: token ids with image placeholders expanded.
        positions_P: (1, P), or (3, P) for multimodal rotary positions.
        next_position: position of the first completion token.
        vision: the processor's tensors for the images of this prompt alone.
        features: the frozen tower's output, one (tokens, D) tensor an image (the pixels are then released), or None while not yet computed.
        content: words and images before the template, for engines that run elsewhere; empty after a resume.
        opened: what the chat template has already written of the answer, such as ``<think>``.
    """

    text: str
    ids_P: Tensor
    positions_P: Tensor
    next_position: int
    vision: Mapping[str, Tensor]
    features: tuple[Tensor, ...] | None = None
    content: Content = ()
    opened: str = ""


@dataclass(frozen=True)
class Prepared:
    """A user message as the processor made it, on the CPU: what a loader's worker can do of a :class:`Prompt`.

    Args:
        text: the message after the chat template.
        inputs: the processor's tensors for this message alone.
        content: words and images before the template.
    """

    text: str
    inputs: Mapping[str, Tensor]
    content: Content = ()


@dataclass(frozen=True)
class Generation:
    """What a rollout engine returns for one completion, before anything is read into it.

    ``ids_T`` includes the end-of-sequence token when one was produced; ``logps_T`` are the
    sampler's own log-probabilities under the sampling distribution.
    """

    ids_T: Tensor
    logps_T: Tensor
    truncated: bool


@dataclass(frozen=True)
class Completion:
    """One parsed answer of the model.

    Args:
        text: as it was generated.
        answer: its value as the task defines it (a box, several boxes, a permutation, a word), or None where none could be read.
        well_formed: whether the whole text follows the think/answer structure.
        truncated: whether it was cut off at ``max_new_tokens``.
        score: the task's own score of the answer, in [0, 1].
        generation: its tokens and log-probabilities.
    """

    text: str
    answer: Any
    well_formed: bool
    truncated: bool
    score: float = 0.0
    generation: Generation | None = None

    @property
    def box(self) -> Box | None:
        """The answer where it is a single box: original pixels, not clipped."""
        answer = self.answer
        is_box = isinstance(answer, tuple) and len(answer) == 4 and all(isinstance(v, float | int) for v in answer)
        return answer if is_box else None


@dataclass(frozen=True)
class RolloutGroup:
    """The G completions of one sample with their scores: ``scores`` maps a reward's name to G floats; ``failed`` says why there are none."""

    sample: Any
    prompt: Prompt
    completions: tuple[Completion, ...]
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rewards: tuple[float, ...] = ()
    failed: str = ""
