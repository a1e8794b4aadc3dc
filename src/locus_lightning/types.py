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
from typing import TYPE_CHECKING, Literal

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

    ``box`` in original pixels; ``id`` is unique within the data set.
    """

    box: Box
    label: str = ""
    id: int = 0


@dataclass(frozen=True, slots=True)
class CueWindow:
    """Where to crop, before anything is cropped.

    ``box`` is the final, clipped, integer window and therefore the exact answer (PAPER section 4,
    decision 1 of ours); ``scale`` resizes the cue image after cropping; ``object_box`` is the
    object's own box where there is one.
    """

    box: IntBox
    size_bin: SizeBin
    scale: float = 1.0
    object_box: Box | None = None
    label: str = ""
    object_id: int = 0


@dataclass(frozen=True)
class Cue:
    """A cue: the crop the model is shown in training, never at inference.

    Where ``text`` is given, the model is shown these words instead of the crop (the paper's text-cue control).
    """

    image: Image
    window: CueWindow
    text: str = ""


@dataclass(frozen=True)
class CueSample:
    """One training example: find ``cue`` in ``image``.

    ``box`` is the answer. ``quarantined`` lists (path, reason) of images that were skipped to
    arrive at this sample.
    """

    id: str
    image: Image
    cue: Cue
    box: Box
    quarantined: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Question:
    """A plain question about one image with its right answer: a supervised lesson, or an item of a benchmark.

    ``text`` and ``answer`` hold ``{0}``, ``{1}``, ... where ``boxes`` (original pixels) go, written in the model's own frame;
    braces that are meant are doubled. ``task`` is the kind of question, by which figures are grouped; ``verdict`` the last word of an
    answer that leads up to it: it alone decides whether the answer is right.
    """

    id: str
    image: Image
    text: str
    answer: str = ""
    boxes: tuple[Box, ...] = ()
    task: str = ""
    verdict: str = ""
    quarantined: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A sample as a model reads it; unpadded, padded only at a forward pass.

    ``ids_P`` token ids with image placeholders expanded; ``positions_P`` is (1, P), or (3, P) for
    multimodal rotary positions; ``next_position`` is the position of the first completion token;
    ``vision`` holds the processor's tensors for the images of this prompt alone; ``features`` is
    the frozen tower's output, one (tokens, D) tensor an image (pixels are then let go), or None while not yet computed.
    """

    text: str
    ids_P: Tensor
    positions_P: Tensor
    next_position: int
    vision: Mapping[str, Tensor]
    features: tuple[Tensor, ...] | None = None


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
    """One answer of the model, read.

    ``box`` is in original pixels, not clipped, or None where the answer holds no single valid box;
    ``well_formed`` says whether the whole text follows the think/answer structure.
    """

    text: str
    box: Box | None
    well_formed: bool
    truncated: bool
    generation: Generation | None = None


@dataclass(frozen=True)
class RolloutGroup:
    """The G completions of one sample with their scores: ``scores`` maps a reward's name to G floats."""

    sample: CueSample
    prompt: Prompt
    completions: tuple[Completion, ...]
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rewards: tuple[float, ...] = ()
