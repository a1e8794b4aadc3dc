"""SmallStar: a generated benchmark of small things in V*Bench's own file format, for models that know drawn scenes.

Two kinds of multiple-choice questions, as in V*Bench: direct attributes (one target) and relative position (two targets).
Every target covers under 1 % (tiny) or 1-5 % (small) of its picture and stands among distractors. The pictures come from
generator streams that no training source draws from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from locus_lightning.boxes import size_bin
from locus_lightning.data.synthetic.qa_examples import attribute_options, phrase, position, with_options
from locus_lightning.data.synthetic.scenes import Scene, SceneCues
from locus_lightning.errors import ConfigError

KINDS = ("direct_attributes", "relative_position")
SCENES = SceneCues(image_size=192, objects=(4, 6), object_size=(0.07, 0.2))
"""Small targets among three to five distractors, on gradients with clutter."""

_STREAM = 0x57A2


def write_smallstar(folder: Path, number: int = 200, seed: int = 0) -> None:
    """Write the benchmark: ``test_questions.jsonl``, and for each kind a folder of ``N.png`` with ``N.json`` beside it.

    Args:
        folder: where to; it must not exist, or be empty.
        number: questions of each kind.
        seed: of the pictures and questions.

    Raises:
        ConfigError: ``folder`` is not empty, or ``number`` below 1.
    """
    if number < 1:
        raise ConfigError(f"--number is {number}; it is at least 1.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty; choose another folder.")
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for i in track(range(number), description=kind):
            image, row, beside = question(kind, i, seed)
            name = f"{kind}/{i:04d}"
            image.save(folder / f"{name}.png")
            (folder / f"{name}.json").write_text(json.dumps(beside, indent=1) + "\n")
            rows.append({"image": f"{name}.png", **row, "question_id": len(rows)})
    (folder / "test_questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def question(kind: str, index: int, seed: int) -> tuple[Image.Image, dict[str, Any], dict[str, Any]]:
    """One question: picture, row of ``test_questions.jsonl``, and what stands in the file beside the picture (right option first)."""
    rng = np.random.default_rng([_STREAM, KINDS.index(kind), index, seed])
    wanted = ("tiny", "small")[index % 2]
    make = direct_attribute if kind == KINDS[0] else _position
    while True:
        scene = SCENES.draw(rng)
        parts = make(scene, wanted, rng)
        if parts is not None:
            break
    text, options, names, targets = parts
    lettered, label = with_options(text, options, rng)
    row = {"text": lettered, "category": kind, "label": label}
    boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in (scene.boxes[i] for i in targets)]
    return scene.image, row, {"target_object": names, "bbox": boxes, "question": text, "options": options, "size_bin": wanted}


_Found = tuple[str, list[str], list[str], list[int]]


def _of_size(scene: Scene, wanted: str) -> list[int]:
    return [i for i, box in enumerate(scene.boxes) if size_bin(box, scene.image.size) == wanted]


def direct_attribute(scene: Scene, wanted: str, rng: np.random.Generator) -> _Found | None:
    """Text, options (the right one first), names and indices of the targets of a question about one object whose size bin is ``wanted``; None
    where the scene has no such object with a name."""
    fitting = _of_size(scene, wanted)
    if not fitting:
        return None
    i = fitting[int(rng.integers(len(fitting)))]
    attribute_name = ("colour", "shape")[int(rng.integers(2))]
    words = phrase(scene.looks, i, rng, leave_out=attribute_name)
    if words is None:
        return None
    right = str(getattr(scene.looks[i], attribute_name))
    return f"What is the {attribute_name} of the {words}?", attribute_options(right, rng), [words], [i]


def _position(scene: Scene, wanted: str, rng: np.random.Generator) -> _Found | None:
    fitting = _of_size(scene, wanted)
    if len(fitting) < 2:
        return None
    i, j = (fitting[int(k)] for k in rng.permutation(len(fitting))[:2])
    a, b = phrase(scene.looks, i, rng), phrase(scene.looks, j, rng)
    asked_position = position(scene, (i, j), (a, b), int(rng.integers(2)))
    return asked_position and (*asked_position, [a, b], [i, j])  # type: ignore[return-value,list-item]
