"""The task contract: what is asked of a model, and what is right. A task knows no model; a backbone knows no task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from locus_lightning.boxes import BoxFrame
from locus_lightning.tasks.parsing import parse_response, write_response
from locus_lightning.types import Completion, Content, Generation, RolloutGroup

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torchmetrics import Metric


@dataclass(frozen=True)
class Answer:
    """A parsed answer: its value, or None where none could be read; and whether the whole text is in the form that was asked for."""

    value: Any
    well_formed: bool


class Task(ABC):
    """What is asked and what is right.

    A subclass states at least :meth:`messages`, :meth:`write_answer`, :meth:`read_answer` and :meth:`score_answer`. The think/answer
    structure, metrics, floors and pictures follow from those; each can be overridden.
    """

    answer_kind: ClassVar[str] = "text"
    """What an answer is: ``box``, ``boxes``, or a word of the task's own. Rewards say which kinds they fit."""
    headline: ClassVar[str] = "score"
    """The figure of :meth:`metrics` that the progress bar and the summary show first: ``val/<headline>``."""
    columns: ClassVar[Mapping[str, str]] = {"score": "mean score", "exact": "fully right"}
    """Figures of the summary's table, by their name in :meth:`metrics`, with their titles."""
    groups: ClassVar[Sequence[str]] = ()
    """Suffixes of figures that the summary's table shows in a row each, such as size bins."""
    rationale: str = "I look at the picture."
    """What supervised training puts inside the think block."""

    @property
    def name(self) -> str:
        """The name in logs: the class name in lower case, without ``Task``."""
        return type(self).__name__.removesuffix("Task").lower()

    # ---- what a task states --------------------------------------------------------------------------------------

    def sample(self, sample: Any, rng: np.random.Generator) -> Any:
        """The example of this task that is made from what a data source gives; unchanged unless the task says otherwise.

        Args:
            sample: of the source, such as a :class:`~locus_lightning.types.CueSample`.
            rng: seeded by seed, epoch and index: all randomness comes from it.
        """
        return sample

    @abstractmethod
    def messages(self, sample: Any, frame: BoxFrame) -> Content:
        """What the user message says: words and images, in order."""

    @abstractmethod
    def write_answer(self, sample: Any, frame: BoxFrame) -> str:
        """The right answer as text, as it belongs into the answer block."""

    @abstractmethod
    def read_answer(self, text: str, sample: Any, frame: BoxFrame) -> Any:
        """The value of an answer block's text, or None where it holds none. Never raises, whatever the text."""

    @abstractmethod
    def score_answer(self, answer: Any, sample: Any) -> float:
        """How right an answer is, from 0 to 1. ``answer`` is never None."""

    def blind_answers(self, sample: Any) -> Mapping[str, Any]:
        """Named answers that need no look at the picture. The best of them over a data set is the floor that a model has to beat."""
        return {}

    # ---- what follows ----------------------------------------------------------------------------------------------

    def target_text(self, sample: Any, frame: BoxFrame) -> str:
        """What a perfect model writes, think block included: the target of supervised training."""
        return write_response(self.rationale, self.write_answer(sample, frame))

    def parse(self, text: str, sample: Any, frame: BoxFrame) -> Answer:
        """The answer of a completion. Never raises.

        Args:
            text: the completion, with what the chat template had opened before it.
            sample: what was asked.
            frame: of the image.
        """
        response = parse_response(text)
        value = None if response.answer is None else self.read_answer(response.answer, sample, frame)
        return Answer(value, response.structured and value is not None)

    def complete(self, text: str, sample: Any, frame: BoxFrame, opened: str = "", generation: Generation | None = None) -> Completion:
        """A generated text as a parsed, scored completion.

        Args:
            text: as it was generated.
            sample: what was asked.
            frame: of the image.
            opened: what the chat template had already written of the answer.
            generation: the tokens behind the text.
        """
        answer = self.parse(opened + text, sample, frame)
        score = 0.0 if answer.value is None else float(self.score_answer(answer.value, sample))
        return Completion(text, answer.value, answer.well_formed, bool(generation and generation.truncated), score, generation)

    def metrics(self) -> Metric:
        """A torchmetrics metric over (completions, samples) whose figures are logged as ``val/NAME``."""
        from locus_lightning.tasks.metrics import TaskMetrics

        return TaskMetrics(self)

    def rollout_figures(self, completions: Sequence[Completion], samples: Sequence[Any]) -> dict[str, float]:
        """Figures of a rollout batch, logged as ``rollout/NAME``; the names are the same whatever the completions are."""
        from locus_lightning.tasks.metrics import score_figures

        return score_figures(self, completions, samples)

    def record(self, completion: Completion, sample: Any) -> dict[str, Any]:
        """A prediction as a row of ``predictions.jsonl``."""
        return {
            "id": sample.id,
            "text": completion.text,
            "answer": completion.answer,
            "score": completion.score,
            "well_formed": completion.well_formed,
            "truncated": completion.truncated,
        }

    def draw(self, group: RolloutGroup) -> Image:
        """The picture of a rollout group in the log: the images of the message, and the answers coloured by reward."""
        from locus_lightning.tasks.pictures import draw_message

        return draw_message(self, group)

    # ---- what a model's folder remembers -----------------------------------------------------------------------------

    def adopt(self, remembered: Mapping[str, Any]) -> None:  # noqa: B027 - most tasks have nothing to adopt
        """Take the settings that a saved model was trained with, where the user states none. Unknown ones are left alone.

        Raises:
            ConfigError: they are not of the expected form.
        """

    def remember(self) -> dict[str, Any]:
        """What a saved model's folder should remember of the task."""
        return {}


def check_fit(task: Task, rewards: Sequence[Any]) -> None:
    """Refuse rewards that cannot score the task's answers.

    Raises:
        ConfigError: names the first reward that does not fit, and what it fits.
    """
    from locus_lightning.errors import ConfigError

    for reward in rewards:
        if reward.fits is not None and task.answer_kind not in reward.fits:
            raise ConfigError(
                f"model.rewards: {type(reward).__name__} scores {' or '.join(sorted(reward.fits))} answers and {type(task).__name__} has "
                f"{task.answer_kind} answers; use AnswerReward, which takes the task's own score, or a reward of your own."
            )
