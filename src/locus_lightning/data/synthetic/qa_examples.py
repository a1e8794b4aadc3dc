"""QA examples about drawn scenes: what a small model is taught before it is asked to search. Boxes are written in the model's frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from locus_lightning.data.synthetic.drawing import COLOURS, SHAPES, TEXTURE_WORDS, Look
from locus_lightning.data.synthetic.scenes import Scene
from locus_lightning.types import Box, IntBox


@dataclass(frozen=True)
class QAExample:
    """Question and answer about a scene; ``{0}``, ``{1}``, ... stand for ``boxes``, and ``about`` are the objects that the question names."""

    text: str
    answer: str
    boxes: tuple[Box, ...] = ()
    crop: IntBox | None = None
    verdict: str = ""
    about: tuple[int, ...] = ()


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
    attribute_name = ("colour", "shape")[int(rng.integers(2))]
    words = phrase(scene.looks, i, rng, leave_out=attribute_name)
    return words and QAExample(f"What is the {attribute_name} of the {words}?", getattr(scene.looks[i], attribute_name), about=(i,))  # type: ignore[return-value]


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
    compared = position(scene, (i, j), (phrase(scene.looks, i, rng), phrase(scene.looks, j, rng)), axis)
    if compared is None:
        return None
    return QAExample(compared[0], f"{{0}} {{1}} {compared[1][0]}", (scene.boxes[i], scene.boxes[j]), verdict=compared[1][0], about=(i, j))


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

WORDS = ("attribute", "count", "relation", "choose_attribute", "choose_relation")
"""Kinds that ask for a word."""

SEARCH = ("cue", "text_cue")
"""The search in its own format, by a crop and by words."""
