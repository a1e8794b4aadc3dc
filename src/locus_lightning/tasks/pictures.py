"""Pictures of rollout groups, for the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from locus_lightning.boxes import BoxFrame, clip_box
from locus_lightning.types import Box, RolloutGroup

if TYPE_CHECKING:
    from locus_lightning.tasks.base import Task

_TRUE = (255, 255, 255)
_TEXT = (235, 235, 235)
_BACKGROUND = (40, 40, 44)
_SIDE = 448


def colour_of(reward: float) -> tuple[int, int, int]:
    """Red for 0, yellow for a half, green for 1."""
    r = min(max(reward, 0.0), 1.0)
    return (round(255 * min(1.0, 2 - 2 * r)), round(220 * min(1.0, 2 * r)), 40)


def draw_boxes(
    image: Image.Image,
    true: Sequence[Box],
    crops: Sequence[Image.Image],
    answers: Sequence[Sequence[Box]],
    rewards: Sequence[float],
    title: str,
) -> Image.Image:
    """An image with its true boxes (white) and the answered ones, coloured from red (reward 0) to green (reward 1); the crops beside it.

    Args:
        image: the picture.
        true: the right boxes, original pixels.
        crops: what was shown beside the picture.
        answers: the boxes of each completion, original pixels.
        rewards: one of each completion.
        title: such as the sample's id.
    """
    scale = _SIDE / max(image.size)
    canvas = Image.new("RGB", (_SIDE + _SIDE // 3 + 12, _SIDE + 24), _BACKGROUND)
    canvas.paste(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS), (0, 24))
    pen = ImageDraw.Draw(canvas)
    for i in np.argsort(rewards):  # the best on top
        for box in answers[int(i)]:
            _frame(pen, clip_box(box, image.size), scale, colour_of(rewards[int(i)]), 2)
    for box in true:
        _frame(pen, box, scale, (0, 0, 0), 4)
        _frame(pen, box, scale, _TRUE, 2)
    font = ImageFont.load_default(14)
    pen.text((6, 4), f"{title}   white: true box", fill=_TEXT, font=font)
    inset, y = _SIDE // 3 // max(1, len(crops)), 24
    for crop in crops:
        factor = inset / max(crop.size)
        size = (max(1, round(crop.width * factor)), max(1, round(crop.height * factor)))
        canvas.paste(crop.resize(size, Image.Resampling.LANCZOS), (_SIDE + 8, y))
        pen.text((_SIDE + 8, y + inset + 10), f"cue {crop.width}x{crop.height} px", fill=_TEXT, font=font)
        y += inset + 32
    _list_rewards(pen, rewards, y)
    return canvas


def draw_message(task: Task, group: RolloutGroup) -> Image.Image:
    """The images of a group's message side by side, and every completion's answer with its reward: for tasks without a picture of their
    own."""
    images = [part for part in group.prompt.content if not isinstance(part, str)] or [group.sample.image]
    canvas = Image.new("RGB", (_SIDE + _SIDE // 3 + 12, _SIDE + 24), _BACKGROUND)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    columns = int(np.ceil(np.sqrt(len(images))))
    side = _SIDE // columns
    for i, image in enumerate(images):
        factor = (side - 4) / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        canvas.paste(image.resize(size, Image.Resampling.LANCZOS), (i % columns * side, 24 + i // columns * side))
    right = task.write_answer(group.sample, BoxFrame.thousandths(group.sample.image.size))
    pen.text((6, 4), f"{group.sample.id}   {task.name}   right: {right}", fill=_TEXT, font=font)
    answers = [_short(completion.answer) for completion in group.completions]
    _list_rewards(pen, group.rewards, 24, answers)
    return canvas


def contact_sheet(task: Task, groups: Sequence[RolloutGroup]) -> Image.Image:
    """Several groups, two in a row, each drawn by the task of its sample."""
    from locus_lightning.tasks.question_answering import task_of

    tiles = [task_of(task, group.sample).draw(group) for group in groups]
    w, h = tiles[0].size
    columns = min(2, len(tiles))
    sheet = Image.new("RGB", (columns * w, -(-len(tiles) // columns) * h), _BACKGROUND)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * w, i // columns * h))
    return sheet


def _list_rewards(pen: ImageDraw.ImageDraw, rewards: Sequence[float], y: int, answers: Sequence[str] | None = None) -> None:
    font = ImageFont.load_default(14)
    for line, i in enumerate(sorted(range(len(rewards)), key=lambda i: -rewards[i])):
        text = f"reward {rewards[i]:.2f}" if answers is None else f"{rewards[i]:.2f}  {answers[i]}"
        pen.text((_SIDE + 8, y + 18 * line), text, fill=colour_of(rewards[i]), font=font)


def _short(answer: Any) -> str:
    text = "no answer" if answer is None else str(answer)
    return text if len(text) <= 18 else text[:17] + "…"


def _frame(pen: ImageDraw.ImageDraw, box: Box, scale: float, colour: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = (v * scale for v in box)
    pen.rectangle((x1, y1 + 24, max(x1 + 1, x2 - 1), max(y1 + 25, y2 + 23)), outline=colour, width=width)
