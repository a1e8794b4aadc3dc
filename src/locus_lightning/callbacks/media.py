"""Pictures and tables to whatever logger is configured: those that take pictures get them, for the others they lie in the run's folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from locus_lightning.callbacks.loggers import disk_trouble_is_a_warning
from locus_lightning.callbacks.run_folder import run_folder
from locus_lightning.files import whole

log = logging.getLogger(__name__)

PICTURES = "pictures"
"""The folder, in a run's folder, of what no logger takes."""


def log_media(trainer: L.Trainer, name: str, picture: Image.Image, title: str, table: Sequence[Sequence[str]], step: int) -> None:
    """Log a picture and a table of texts.

    Args:
        trainer: its loggers are asked.
        name: of the picture.
        picture: RGB.
        title: of the table.
        table: rows, the header first.
        step: optimiser steps taken.
    """
    taken = [_to_logger(logger, name, picture, title, table, step) for logger in trainer.loggers]
    folder = run_folder(trainer)
    if any(taken) or folder is None:
        return
    try:
        with whole(folder / PICTURES / f"{name}-{step:06d}.png") as beside:
            picture.save(beside, format="PNG")
        with whole(folder / PICTURES / f"{title}-{step:06d}.md") as beside:
            beside.write_text(markdown(table) + "\n", encoding="utf-8")
    except OSError as cause:  # a picture is not worth a run
        log.warning("the picture of step %d could not be written (%s).", step, cause)


def _to_logger(logger: Logger, name: str, picture: Image.Image, title: str, table: Sequence[Sequence[str]], step: int) -> bool:
    """Whether a logger took them."""
    with disk_trouble_is_a_warning(logger):
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
            logger.experiment.add_text(title, markdown(table), step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(key=name, images=[picture], step=step)
            logger.log_table(key=title, columns=list(table[0]), data=[list(row) for row in table[1:]], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, f"{PICTURES}/{name}-{step:06d}.png")
            logger.experiment.log_text(logger.run_id, markdown(table), f"{PICTURES}/{title}-{step:06d}.md")
        else:
            return False
    return True


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table as Markdown; what models say cannot end a cell."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in row] for row in table]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])
