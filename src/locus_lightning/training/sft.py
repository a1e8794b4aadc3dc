"""SupervisedModule: next-token loss on the right answer, through the same data and backbone. Also the cold start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from locus_lightning.backbones.base import Backbone
from locus_lightning.data.source import CueBatch, Split
from locus_lightning.errors import ConfigError
from locus_lightning.objectives.advantages import token_weights
from locus_lightning.objectives.supervised import next_token_loss
from locus_lightning.ranks import joined
from locus_lightning.rollout.base import RolloutEngine, SamplingParams
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.tasks.base import Task
from locus_lightning.tasks.parsing import without_opened
from locus_lightning.training.base import TaskModule
from locus_lightning.types import Question, Sample


def by_image(batch: Iterable[Sample]) -> list[list[Sample]]:
    """Plain questions about the same image together, every cue sample alone."""
    groups: dict[int, list[Sample]] = {}
    for sample in batch:
        groups.setdefault(id(sample.image if isinstance(sample, Question) else sample), []).append(sample)
    return list(groups.values())


class SupervisedModule(TaskModule):
    """Teaches the answer itself: the control of the paper's table on training methods, and the cold start of a toy.

    Args:
        backbone: The model that is trained.
        task: What is asked and what is right; null is cue search. Plain questions among the data are a task of their own.
        rollout: The engine that generates answers in validation; null is ``HFRollout``.
        validation: How held-out answers are sampled; null is greedy with 256 tokens.
        train_vision: Whether the vision side trains too; null is what the backbone is configured to do.
        optimizer: It gets the parameters that train and gives an optimiser.
        schedule: How the learning rate changes after the warm-up: ``constant``, ``linear`` to 0, or ``cosine`` to 0.
        warmup_ratio: The share of all steps over which the rate rises from 0.
        reduction: ``token`` counts every answer token alike. ``sequence`` counts every answer alike, so that one-word answers are not
            outweighed by long lists.
        max_skipped_steps: How many steps in a row may have a gradient that is not finite, before training stops. Such steps are skipped.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task | None = None,
        rollout: RolloutEngine | None = None,
        validation: SamplingParams | None = None,
        train_vision: bool | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-5, weight_decay=1e-2),
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        warmup_ratio: float = 0.05,
        reduction: Literal["token", "sequence"] = "token",
        max_skipped_steps: int = 3,
    ) -> None:
        validation = validation or SamplingParams(temperature=0.0)
        super().__init__(backbone, task, rollout or HFRollout(), validation, optimizer, schedule, warmup_ratio, max_skipped_steps)
        self.train_vision, self.reduction = train_vision, reduction
        self._scores: dict[str, list[float]] = {}
        self._names: list[str] = []

    def setup(self, stage: str) -> None:
        """See :meth:`TaskModule.setup`; also refuses an order that learns from rollouts, of which there are none here."""
        super().setup(stage)
        order = getattr(getattr(self.trainer, "datamodule", None), "order", None)
        if stage == "fit" and order is not None and order.learns:
            raise ConfigError(
                f"data.order is {type(order).__name__}, which learns from rollouts; SupervisedModule makes none: set data.order: null."
            )

    def configure_model(self) -> None:
        """Load weights and choose what trains."""
        super().configure_model()
        self.backbone.set_trainable(vision=self.train_vision)
        self.shard()

    def training_step(self, batch: CueBatch, batch_idx: int) -> Tensor:
        """Mean negative log-likelihood of the right answers' tokens."""
        self._names = [str(sample.id) for sample in batch]
        groups = by_image(batch)
        # rows of a pass are as long as the longest; processes that hold pieces of the weights have to take the same passes
        apart = [groups] if self.backbone.in_pieces else [[g for g in groups if len(g) == 1], [g for g in groups if len(g) > 1]]
        passes = [self._answer_logps(some) for some in apart if some]
        loss = next_token_loss(*(torch.cat(column) for column in zip(*passes, strict=True)))
        self.log("update/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def _answer_logps(self, groups: Sequence[Sequence[Sample]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N,) from one packed row a group, and what each counts (N,): 0 where it is not of a right answer."""
        prompts, rests = self.backbone.encode_shared([self.contents(group) for group in groups])
        answers = [
            [self.backbone.tokenize_answer(without_opened(self._target(sample), prompt.opened)) for sample in group]
            for prompt, group in zip(prompts, groups, strict=True)
        ]
        most, none = max(map(len, groups)), prompts[0].ids_P[:0]
        answer_ids = [
            [torch.cat(pair) for pair in zip(*row, strict=True)] + [none] * (most - len(row[0])) for row in zip(rests, answers, strict=True)
        ]
        logps_BGT, _ = self.backbone.logps(prompts, answer_ids)
        begins_BG, ends_BG = (
            torch.tensor([[len(ids) for ids in row] + [0] * (most - len(row)) for row in rows], device=logps_BGT.device)[..., None]
            for rows in (rests, answer_ids)
        )
        token_T = torch.arange(logps_BGT.shape[-1], device=logps_BGT.device)
        right_BGT = (token_T >= begins_BG) & (token_T < ends_BG)
        return logps_BGT.flatten(), token_weights(right_BGT, self.reduction, 1).flatten()

    # ---- plain questions in validation -----------------------------------------------------------------------------

    def step_samples(self) -> list[str]:
        """Names of the samples of the last batch."""
        return self._names

    def _target(self, sample: Any) -> str:
        return self.task_of(sample).target_text(sample, self.backbone.frame(sample.image.size))

    def prepare_in_workers(self, split: Split) -> None:
        """None: right answers and prompts that share an image are put together in the training step."""

    def count(self, batch: CueBatch) -> None:
        """Samples of the task are counted as in reinforcement; plain questions by their kind, see :class:`QuestionAnswering`."""
        task_samples = [sample for sample in batch if not isinstance(sample, Question)]
        questions = [sample for sample in batch if isinstance(sample, Question)]
        if task_samples:
            super().count(CueBatch(task_samples))
        for question, completion in zip(questions, self.answer(questions) if questions else (), strict=True):
            self._scores.setdefault(question.kind, []).append(completion.score)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of cues, then those of every task."""
        super().on_validation_epoch_end()
        own, self._scores = self._scores, {}
        if self.trainer.sanity_checking or self.stopping:
            return
        for kind, scores in joined(own, self.trainer.world_size).items():
            self.log(f"val/task_{kind}", sum(scores) / len(scores), rank_zero_only=True)
