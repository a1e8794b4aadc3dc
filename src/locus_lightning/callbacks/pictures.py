"""What the model sees and answers, as pictures and text in TensorBoard."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont

from locus_lightning.boxes import clip_box
from locus_lightning.training.grpo import LocusModule
from locus_lightning.types import Box, RolloutGroup

_TRUE = (255, 255, 255)
_SIDE = 448


class CuePictures(L.Callback):
    """Every so many optimiser steps, one picture of a few rollout groups: the image with its true box (white), the G
    answers coloured from red (reward 0) to green (reward 1), the cue beside it; and the best and worst completion as text.

    Args:
        every_n_steps: optimiser steps between pictures; 0 for none.
        groups: groups in a picture.
    """

    def __init__(self, every_n_steps: int = 50, groups: int = 4) -> None:
        self.every_n_steps, self.groups = every_n_steps, groups
        self._last = -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draw when a rollout batch was just collected and it is time."""
        if not (batch and self.every_n_steps and isinstance(pl_module, LocusModule) and trainer.is_global_zero):
            return
        if self._last >= 0 and trainer.global_step - self._last < self.every_n_steps:
            return
        self._last = trainer.global_step
        chosen = pl_module.groups[: self.groups]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("cues", np.asarray(contact_sheet(chosen)), self._last, dataformats="HWC")
                logger.experiment.add_text("completions", completions_table(chosen), self._last)


def colour_of(reward: float) -> tuple[int, int, int]:
    """Red for 0, yellow for a half, green for 1."""
    r = min(max(reward, 0.0), 1.0)
    return (round(255 * min(1.0, 2 - 2 * r)), round(220 * min(1.0, 2 * r)), 40)


def draw_group(group: RolloutGroup, side: int = _SIDE) -> Image.Image:
    """One group: the image at ``side`` px with its boxes, the cue beside it on a grey strip."""
    width, height = group.sample.image.size
    scale = side / max(width, height)
    canvas = Image.new("RGB", (side + side // 3 + 12, side + 24), (40, 40, 44))
    canvas.paste(group.sample.image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS), (0, 24))
    pen = ImageDraw.Draw(canvas)
    for i in np.argsort(group.rewards):  # the best on top
        box = group.completions[int(i)].box
        if box is not None:
            _frame(pen, clip_box(box, (width, height)), scale, colour_of(group.rewards[int(i)]), 2)
    _frame(pen, group.sample.box, scale, (0, 0, 0), 4)
    _frame(pen, group.sample.box, scale, _TRUE, 2)
    cue = group.sample.cue.image
    inset = side // 3
    factor = inset / max(cue.size)
    canvas.paste(
        cue.resize((max(1, round(cue.width * factor)), max(1, round(cue.height * factor))), Image.Resampling.LANCZOS), (side + 8, 24)
    )
    font = ImageFont.load_default(14)
    pen.text((6, 4), f"{group.sample.id}   white: true box", fill=(235, 235, 235), font=font)
    y = 24 + inset + 10
    pen.text((side + 8, y), f"cue {cue.width}x{cue.height} px", fill=(235, 235, 235), font=font)
    for line, reward in enumerate(sorted(group.rewards, reverse=True)):
        pen.text((side + 8, y + 22 + 18 * line), f"reward {reward:.2f}", fill=colour_of(reward), font=font)
    return canvas


def contact_sheet(groups: list[RolloutGroup]) -> Image.Image:
    """Several groups, two in a row."""
    tiles = [draw_group(group) for group in groups]
    w, h = tiles[0].size
    columns = min(2, len(tiles))
    sheet = Image.new("RGB", (columns * w, -(-len(tiles) // columns) * h), (40, 40, 44))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * w, i // columns * h))
    return sheet


def _frame(pen: ImageDraw.ImageDraw, box: Box, scale: float, colour: tuple[int, int, int], width: int) -> None:
    x1, y1, x2, y2 = (v * scale for v in box)
    pen.rectangle((x1, y1 + 24, max(x1 + 1, x2 - 1), max(y1 + 25, y2 + 23)), outline=colour, width=width)


def completions_table(groups: list[RolloutGroup]) -> str:
    """Best and worst completion of every group, as Markdown."""
    lines = ["| sample | true box | which | reward | box (original px) | text |", "|---|---|---|---|---|---|"]
    for group in groups:
        order = sorted(range(len(group.rewards)), key=lambda i: group.rewards[i])
        for which, i in (("best", order[-1]), ("worst", order[0])):
            completion = group.completions[i]
            box = "none" if completion.box is None else ", ".join(f"{v:.0f}" for v in completion.box)
            true = ", ".join(f"{v:.0f}" for v in group.sample.box)
            text = completion.text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
            lines.append(f"| {group.sample.id} | {true} | {which} | {group.rewards[i]:.2f} | {box} | {text} |")
    return "\n".join(lines)
