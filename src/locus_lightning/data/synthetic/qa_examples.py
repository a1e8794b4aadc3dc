"""QA examples about drawn scenes: what a small model is taught before it is asked to search. Boxes are written in the model's frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from locus_lightning.cue_samplers.text_cue import TextCues
from locus_lightning.data.source import SPLITS, CueDataset, CueKey, CueSource, Split
from locus_lightning.data.synthetic.drawing import COLOURS, SHAPES, TEXTURE_WORDS, Look
from locus_lightning.data.synthetic.scenes import Scene, SceneCues
from locus_lightning.errors import ConfigError
from locus_lightning.types import Box, IntBox, Question, Sample


@dataclass(frozen=True)
class QAExample:
    """Question and answer about a scene; ``{0}``, ``{1}``, ... stand for ``boxes``."""

    text: str
    answer: str
    boxes: tuple[Box, ...] = ()
    crop: IntBox | None = None
    verdict: str = ""


def matching(looks: Sequence[Look], **wanted: str) -> list[int]:
    """Indices of the looks with these attributes."""
    return [i for i, look in enumerate(looks) if all(getattr(look, name) == value for name, value in wanted.items())]


def phrase(looks: Sequence[Look], index: int, rng: np.random.Generator, leave_out: str = "") -> str | None:
    """Words that fit the look at ``index`` and no other, by a random choice of attributes; None where there are none.

    ``leave_out`` names an attribute that must not be said, because it is what is asked for.
    """
    look = looks[index]
    if not look.shape:  # named by colour alone
        return look.colour if len(matching(looks, colour=look.colour)) == 1 else None
    kinds = [("colour", "shape"), ("shape",), ("colour",), ("texture", "shape"), ("colour", "texture"), ("colour", "texture", "shape")]
    kinds = [kind for kind in kinds if leave_out not in kind]
    for k in rng.permutation(len(kinds)):
        named = {name: getattr(look, name) for name in kinds[k]}
        if len(matching(looks, **named)) == 1:
            words = [TEXTURE_WORDS[value] if name == "texture" else value for name, value in named.items()]
            return " ".join(words if "shape" in named else [*words, "thing"])
    return None


def _a(look: Look) -> str:
    """With its article: a word after a space is then the same token in an answer as in a question. A colour alone has none."""
    if not look.shape:
        return look.colour
    return f"{'an' if look.colour == 'orange' else 'a'} {look.label}"


def _some(scene: Scene, rng: np.random.Generator) -> int:
    return int(rng.integers(len(scene.boxes)))


def list_objects(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """All objects with their boxes, in random order: after a name its box has to be found by the name, not by the order."""
    order = rng.permutation(len(scene.boxes)).tolist()
    answer = "; ".join(f"{_a(scene.looks[i])} {{{n}}}" for n, i in enumerate(order))
    return QAExample("List all objects.", answer, tuple(scene.boxes[i] for i in order))


def list_boxes(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """All boxes with what is in them, in random order: after a box its name has to be found by the box."""
    order = rng.permutation(len(scene.boxes)).tolist()
    answer = "; ".join(f"{{{n}}} {_a(scene.looks[i])}" for n, i in enumerate(order))
    return QAExample("What is where?", answer, tuple(scene.boxes[i] for i in order))


def ground(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """The box of a phrase."""
    i = _some(scene, rng)
    words = phrase(scene.looks, i, rng)
    return words and QAExample(f"Where is the {words}?", "{0}", (scene.boxes[i],))  # type: ignore[return-value]


def name_box(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """What is in a box."""
    i = _some(scene, rng)
    return QAExample("What is at {0}?", _a(scene.looks[i]), (scene.boxes[i],))


def name_crop(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """What a crop shows, cut out as a cue is."""
    i = _some(scene, rng)
    x1, y1, x2, y2 = scene.boxes[i]
    dx, dy = (float(rng.uniform(0, 0.1)) * side for side in (x2 - x1, y2 - y1))
    side = scene.image.width
    crop = (max(0, round(x1 - dx)), max(0, round(y1 - dy)), min(side, round(x2 + dx)), min(side, round(y2 + dy)))
    return QAExample("What is this?", _a(scene.looks[i]), crop=crop)


def attribute(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """The colour or shape of an object that is named by its other attributes."""
    i = _some(scene, rng)
    asked = ("colour", "shape")[int(rng.integers(2))]
    words = phrase(scene.looks, i, rng, leave_out=asked)
    return words and QAExample(f"What is the {asked} of the {words}?", getattr(scene.looks[i], asked))  # type: ignore[return-value]


def count(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """How many objects have a colour or a shape."""
    look = scene.looks[_some(scene, rng)]
    if rng.random() < 0.5:
        return QAExample(f"How many {look.colour} things are there?", str(len(matching(scene.looks, colour=look.colour))))
    plural = look.shape + ("es" if look.shape == "cross" else "s")
    return QAExample(f"How many {plural} are there?", str(len(matching(scene.looks, shape=look.shape))))


def relation(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """Which of two objects is further left, or higher. The answer says where both are before it compares them: within a word, a model
    of a few layers does not."""
    if len(scene.boxes) < 2:
        return None
    i, j = (int(k) for k in rng.permutation(len(scene.boxes))[:2])
    axis = int(rng.integers(2))
    found = position(scene, (i, j), (phrase(scene.looks, i, rng), phrase(scene.looks, j, rng)), axis)
    if found is None:
        return None
    return QAExample(found[0], f"{{0}} {{1}} {found[1][0]}", (scene.boxes[i], scene.boxes[j]), verdict=found[1][0])


def choose_attribute(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """As :func:`attribute`, with four lettered options; the answer is the words of one, which scoring takes for its letter."""
    plain = attribute(scene, rng)
    if plain is None:
        return None
    return replace(plain, text=with_options(plain.text, attribute_options(plain.answer, rng), rng)[0])


def choose_relation(scene: Scene, rng: np.random.Generator) -> QAExample | None:
    """As :func:`relation`, with two lettered options; answered likewise."""
    plain = relation(scene, rng)
    if plain is None:
        return None
    other = {"left": "right", "right": "left", "above": "below", "below": "above"}[plain.verdict]
    return replace(plain, text=with_options(plain.text, [plain.verdict, other], rng)[0])


def with_options(question: str, options: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    """A multiple-choice question as V*Bench writes it, ``options`` (the right one first) in random order, and the right letter."""
    order = rng.permutation(len(options)).tolist()
    lines = "".join(f"\n({letter}) {options[k]}" for letter, k in zip("ABCDEFGH", order, strict=False))
    return f"{question}{lines}\nAnswer with the option's letter from the given choices directly.", "ABCDEFGH"[order.index(0)]


def attribute_options(right: str, rng: np.random.Generator) -> list[str]:
    """The right colour or shape, then three wrong ones."""
    wrong = [word for word in (COLOURS if right in COLOURS else SHAPES) if word != right]
    return [right, *(wrong[int(k)] for k in rng.permutation(len(wrong))[:3])]


def position(scene: Scene, pair: tuple[int, int], names: tuple[str | None, str | None], axis: int) -> tuple[str, list[str]] | None:
    """Whether the first of two named objects is further left (axis 0), or higher (1), than the second: question and options, the right
    one first; None where one has no name, or they do not lie apart."""
    (a, b), (first, second) = names, ((scene.boxes[k][axis] + scene.boxes[k][axis + 2]) / 2 for k in pair)
    if a is None or b is None or abs(first - second) < 0.1 * scene.image.width:
        return None
    sides, where = (["left", "right"], "on the left or right side of") if axis == 0 else (["above", "below"], "above or below")
    return f"Is the {a} {where} the {b}?", sides if first < second else sides[::-1]


TASKS: dict[str, Callable[[Scene, np.random.Generator], QAExample | None]] = {
    "list": list_objects,
    "list_boxes": list_boxes,
    "ground": ground,
    "name_box": name_box,
    "name_crop": name_crop,
    "attribute": attribute,
    "count": count,
    "relation": relation,
    "choose_attribute": choose_attribute,
    "choose_relation": choose_relation,
}
"""Kinds of QA example; beside them :data:`SEARCH` is the search itself."""

SEARCH = ("cue", "text_cue")
"""The search in its own format, by a crop and by words."""


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Args:
        epochs: The number of epochs that it lasts; the last stage lasts to the end.
        scenes: The scenes that are drawn.
        mix: The share of each kind of QA example: list, list_boxes, ground, name_box, name_crop, attribute, count, relation,
            choose_attribute, choose_relation, and in the format of cue search cue and text_cue.
        cues: The scenes of the ``cue`` examples; null is ``scenes``.
        text_cues: The scenes of the ``text_cue`` examples; their cue sampler is ``TextCues``.
        colours_only: Whether objects have different colours and are named by them alone. A model learns much sooner where an object is
            when its name is one word that stands right before the box.
    """

    epochs: int
    scenes: SceneCues
    mix: dict[str, float]
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


def _scene(stage: Stage, rng: np.random.Generator) -> Scene:
    """A scene as a stage names its objects."""
    scene = stage.scenes.draw(rng)
    if not stage.colours_only:
        return scene
    while len({look.colour for look in scene.looks}) < len(scene.looks):
        scene = stage.scenes.draw(rng)
    return replace(scene, looks=tuple(Look("", look.colour, "plain") for look in scene.looks))


def qa_examples(name: str, stage: Stage, number: int, rng: np.random.Generator) -> tuple[Sample, ...]:
    """``number`` QA examples about one scene, of kinds drawn from the stage's mix; no two say the same.

    Raises:
        ConfigError: the scenes give no such QA example, such as a relation among single objects.
    """
    tasks, shares = list(stage.mix), np.array(list(stage.mix.values()))
    found: dict[str, Sample] = {}
    for attempt in range(200):
        if attempt % 20 == 0:
            scene = _scene(stage, rng)
        task = tasks[int(rng.choice(len(tasks), p=shares / shares.sum()))]
        if task in SEARCH:
            scenes = stage.text_cues if task == "text_cue" else stage.cues
            found.setdefault(task, (scenes or stage.scenes).cue(name, rng))
        else:
            made = TASKS[task](scene, rng)
            if made:
                image = scene.image if made.crop is None else scene.image.crop(made.crop)
                found.setdefault(made.text + made.answer, Question(name, image, made.text, made.answer, made.boxes, task, made.verdict))
        if len(found) == number or (found and attempt == 19):
            return tuple(found.values())
    raise ConfigError(f"SceneQA: scenes with {stage.scenes.objects} objects give no QA example of {tasks}; change the mix.")
