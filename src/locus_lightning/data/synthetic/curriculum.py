"""A curriculum of QA examples about drawn scenes, in stages that grow harder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from locus_lightning.boxes import keep_only
from locus_lightning.cue_samplers.text_cue import TextCues
from locus_lightning.data.source import SPLITS, CueDataset, CueKey, CueSource, Split
from locus_lightning.data.synthetic.drawing import Look
from locus_lightning.data.synthetic.qa_examples import SEARCH, TASKS, WORDS
from locus_lightning.data.synthetic.scenes import Scene, SceneCues
from locus_lightning.errors import ConfigError
from locus_lightning.types import Question, Sample


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Args:
        epochs: The number of epochs that it lasts; the last stage lasts to the end.
        scenes: The scenes that are drawn.
        mix: The share of each kind of QA example: list, list_boxes, ground, name_box, name_crop, attribute, count, relation,
            choose_attribute, choose_relation, and in the format of cue search cue and text_cue.
        questions: The scenes of the examples that ask for a word: attribute, count, relation, choose_attribute and choose_relation; null is
            ``scenes``.
        suppressed: The share of attribute and relation questions in whose picture all but the objects in question is black.
        cues: The scenes of the ``cue`` examples; null is ``scenes``.
        text_cues: The scenes of the ``text_cue`` examples; their cue sampler is ``TextCues``.
        colours_only: Whether objects have different colours and are named by them alone. A model learns much sooner where an object is
            when its name is one word that stands right before the box.
    """

    epochs: int
    scenes: SceneCues
    mix: dict[str, float]
    questions: SceneCues | None = None
    suppressed: float = 0.0
    cues: SceneCues | None = None
    text_cues: SceneCues | None = None
    colours_only: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.mix) - {*TASKS, *SEARCH})
        if unknown or not self.mix or min(self.mix.values()) < 0 or sum(self.mix.values()) <= 0:
            raise ConfigError(
                f"SceneQA: a stage's mix is {self.mix}; give shares of 0 or more to {', '.join([*TASKS, *SEARCH])}"
                + (f" (unknown: {', '.join(unknown)})." if unknown else ".")
            )
        if self.mix.get("text_cue") and not (self.text_cues and isinstance(self.text_cues.cue_sampler, TextCues)):
            raise ConfigError("SceneQA: a stage's mix has text_cue; give it text_cues, scenes whose cue_sampler is TextCues.")
        if self.colours_only and self.scenes.objects[1] > len(self.scenes.colours):
            raise ConfigError(
                f"SceneQA: colours_only with up to {self.scenes.objects[1]} objects and {len(self.scenes.colours)} colours; give more colours."
            )
        if not 0 <= self.suppressed <= 1:
            raise ConfigError(f"SceneQA: a stage's suppressed is {self.suppressed}; it is a share between 0 and 1.")
        if self.epochs < 1:
            raise ConfigError(f"SceneQA: a stage lasts {self.epochs} epochs; it is at least 1.")


class SceneQA(CueSource):
    """A mixture of supervised tasks on generated scenes, in stages that grow harder.

    Args:
        stages: The stages of the curriculum.
        held_out: The cue search that is validated on, beside QA examples of the last stage.
        per_scene: The number of QA examples about one scene. Those about the whole picture share its vision features and its prompt.
        train_size: The number of scenes an epoch.
        val_size: The number of held-out samples. A third of them are cues of ``held_out``; the rest are QA examples, equally many of
            each kind.
    """

    def __init__(self, stages: list[Stage], held_out: SceneCues, per_scene: int = 6, train_size: int = 32000, val_size: int = 768) -> None:
        if not stages or min(train_size, per_scene) < 1 or val_size < 3:
            raise ConfigError(
                f"SceneQA: {len(stages)} stages, per_scene {per_scene}, train_size {train_size} (at least 1 each), "
                f"val_size {val_size} (at least 3)."
            )
        self.stages, self.held_out, self.per_scene = stages, held_out, per_scene
        self.train_size, self.val_size = train_size, val_size

    def dataset(self, split: Split, seed: int) -> CueDataset:
        """See :meth:`CueSource.dataset`."""
        return _QADataset(self, split, seed)

    def stage(self, epoch: int) -> Stage:
        """The stage of an epoch."""
        for stage in self.stages:
            if epoch < stage.epochs:
                return stage
            epoch -= stage.epochs
        return self.stages[-1]


class _QADataset(CueDataset):
    def __init__(self, source: SceneQA, split: Split, seed: int) -> None:
        self.source, self.split, self.seed = source, split, seed
        self.held_out = source.held_out.dataset("val", seed)

    def __len__(self) -> int:
        return self.source.train_size if self.split == "train" else self.source.val_size

    def __getitem__(self, key: CueKey) -> Sample | tuple[Sample, ...]:
        rng = np.random.default_rng([self.seed, 2 + SPLITS.index(self.split), *key])
        name = f"qa-{self.split}-{key[0]}-{key[1]}"
        if self.split == "train":
            return qa_examples(name, self.source.stage(key[0]), self.source.per_scene, rng)
        cues = self.source.val_size // 3
        if key[1] < cues:
            return self.held_out[CueKey(0, key[1])]
        task = list(TASKS)[key[1] % len(TASKS)]
        return qa_examples(name, replace(self.source.stages[-1], mix={task: 1.0}), 1, rng)


def _scene(stage: Stage, scenes: SceneCues, rng: np.random.Generator) -> Scene:
    """A scene as a stage names its objects."""
    scene = scenes.draw(rng)
    if not stage.colours_only:
        return scene
    while len({look.colour for look in scene.looks}) < len(scene.looks):
        scene = scenes.draw(rng)
    return replace(scene, looks=tuple(Look("", look.colour, "plain") for look in scene.looks))


def qa_examples(name: str, stage: Stage, number: int, rng: np.random.Generator) -> tuple[Sample, ...]:
    """``number`` QA examples about one scene, of kinds drawn from the stage's mix; no two say the same.

    Raises:
        ConfigError: the scenes give no such QA example, such as a relation among single objects.
    """
    tasks, shares = list(stage.mix), np.array(list(stage.mix.values()))
    samples: dict[str, Sample] = {}
    for attempt in range(200):
        if attempt % 20 == 0:
            scene = _scene(stage, stage.scenes, rng)
            asked_about = _scene(stage, stage.questions, rng) if stage.questions else scene
        task = tasks[int(rng.choice(len(tasks), p=shares / shares.sum()))]
        if task in SEARCH:
            scenes = stage.text_cues if task == "text_cue" else stage.cues
            samples.setdefault(task, (scenes or stage.scenes).cue(name, rng))
        else:
            drawn = asked_about if task in WORDS else scene
            example = TASKS[task](drawn, rng)
            if example:
                image = drawn.image if example.crop is None else drawn.image.crop(example.crop)
                if example.about and stage.suppressed and rng.random() < stage.suppressed:
                    image = keep_only(image, [drawn.boxes[i] for i in example.about])
                samples.setdefault(
                    example.text + example.answer, Question(name, image, example.text, example.answer, example.boxes, task, example.verdict)
                )
        if len(samples) == number or (samples and attempt == 19):
            return tuple(samples.values())
    raise ConfigError(f"SceneQA: scenes with {stage.scenes.objects} objects give no QA example of {tasks}; change the mix.")
