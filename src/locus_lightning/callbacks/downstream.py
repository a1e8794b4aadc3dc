"""Downstream accuracy beside cue IoU, while training runs."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

import lightning as L

from locus_lightning.analysis.attention_maps import attention_map
from locus_lightning.data.synthetic.smallstar import write_smallstar
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.evaluation.base import Item, limited, only_readable
from locus_lightning.evaluation.benchmarks.vstar import read_vstar
from locus_lightning.evaluation.extract import extract_letter
from locus_lightning.ranks import joined
from locus_lightning.rollout.base import ask
from locus_lightning.training.base import TaskModule


class DownstreamAccuracy(L.Callback):
    """Plain image + question accuracy with every validation, by kind: ``eval/NAME_KIND`` and their mean over questions ``eval/NAME``.

    Args:
        suite: ``smallstar``, which is made on the spot, or a folder in V*Bench's layout.
        number: The number of SmallStar's questions of each kind; of a folder, the largest number of each kind.
        max_new_tokens: The largest number of tokens of an answer, which is greedy.
        batch_size: The number of questions that are answered together.
        attention: The number of questions with boxes over which mean Attention-in-Box is logged too, as ``eval/NAME_aib``; 0 is none.
    """

    def __init__(
        self, suite: str = "smallstar", number: int = 100, max_new_tokens: int = 32, batch_size: int = 64, attention: int = 0
    ) -> None:
        if min(number, max_new_tokens, batch_size, attention + 1) < 1:
            raise ConfigError(
                f"DownstreamAccuracy: number {number}, max_new_tokens {max_new_tokens}, batch_size {batch_size} are at least 1, attention {attention} at least 0."
            )
        self.suite, self.number, self.max_new_tokens, self.batch_size, self.attention = suite, number, max_new_tokens, batch_size, attention
        self.items: list[Item] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read, or make, the questions."""
        if self.items:
            return
        folder = Path(self.suite).expanduser()
        if self.suite == "smallstar":
            self._folder = tempfile.TemporaryDirectory()
            folder = Path(self._folder.name) / "smallstar"
            write_smallstar(folder, self.number)
        self.items = only_readable(limited(read_vstar(folder), self.number))
        if not self.items:
            raise DataError(f"DownstreamAccuracy: {folder} gives no usable question.")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Answer and log; of several processes each takes its share."""
        if not isinstance(pl_module, TaskModule):
            return
        rank, world = trainer.global_rank, trainer.world_size
        pl_module.rollout.sync(pl_module.backbone)
        scores = accuracy(pl_module, self.items[rank::world], self.max_new_tokens, self.batch_size)
        if self.attention:
            scores["aib"] = attention_in_box(pl_module, with_boxes(self.items, self.attention)[rank::world])
        figures = {kind: sum(values) / len(values) for kind, values in joined(scores, world).items() if values}
        name = "smallstar" if self.suite == "smallstar" else Path(self.suite).name
        figures = {f"eval/{name}{'_' if kind else ''}{kind}": value for kind, value in figures.items()}
        if trainer.sanity_checking:
            pl_module.before |= figures
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=0)
        else:
            pl_module.log_dict(figures, rank_zero_only=True)


def accuracy(module: TaskModule, items: list[Item], max_new_tokens: int, batch_size: int) -> dict[str, list[float]]:
    """1 for each right answer and 0 for each wrong one, greedy, by kind; under the empty name of all questions."""
    right: defaultdict[str, list[float]] = defaultdict(list)
    for start in range(0, len(items), batch_size):
        some = items[start : start + batch_size]
        answers = ask(module.rollout, module.backbone, [item.question() for item in some], max_new_tokens)
        for item, answer in zip(some, answers, strict=True):
            score = float(extract_letter(answer.text, item.options) == item.label)
            right[item.kind].append(score)
            right[""].append(score)
    return dict(right)


def with_boxes(items: list[Item], number: int) -> list[Item]:
    """The first ``number`` items with boxes.

    Raises:
        ConfigError: none has boxes.
    """
    some = [item for item in items if item.boxes][:number]
    if not some:
        raise ConfigError("DownstreamAccuracy.attention needs a suite with boxes; set it to 0.")
    return some


def attention_in_box(module: TaskModule, items: list[Item]) -> list[float]:
    """Attention-in-Box of the layer-averaged map, for each item.

    Raises:
        ConfigError: the backbone does not say where its image tokens look.
    """
    return [float(attention_map(module.backbone, item.question()).in_box(item.boxes)[0]) for item in items]
