"""A training module and its rollout engine: it generates, proves itself before anything depends on it, and is closed in the end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import lightning as L
from torch import Tensor

from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.data.source import CueBatch, Split, few_samples
from locus_lightning.errors import ConfigError, LocusError, PluginError, TrainingError
from locus_lightning.rewards.base import Reward
from locus_lightning.rollout.base import RolloutEngine, SamplingParams, generate_checked
from locus_lightning.tasks.base import Task
from locus_lightning.training.resume import ResumableModule
from locus_lightning.training.sharding import as_one_pass, gathered
from locus_lightning.types import Generation, Prompt, RolloutGroup

_PROVEN_ON = 4
"""Samples that a rollout engine proves itself on."""


class RolloutModule(ResumableModule):
    """Base of :class:`~locus_lightning.training.base.TaskModule`."""

    task: Task
    rollout: RolloutEngine
    validation: SamplingParams
    rewards: Sequence[Reward] = ()
    to_the_limit = False
    _proven = False
    _gathered = ExitStack()

    @abstractmethod
    def encode(self, samples: Sequence[Any] | CueBatch) -> list[Prompt]:
        """The prompts of samples."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams | None = None) -> list[Generation]:
        """One completion a prompt, not parsed.

        Raises:
            ConfigError: no weights are loaded.
        """
        if not self.backbone.loaded:
            raise ConfigError("the model has no weights yet; call backbone.load() first, or let a Trainer do it.")
        self.rollout.sync(self.backbone)
        return [generations for (generations,) in self.generate_checked(prompts, 1, sampling or self.validation)]

    def generate_checked(self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[list[Generation]]:
        """``n`` completions of each prompt from the engine, held against its contract, in one pass of the weights."""
        return as_one_pass(self.backbone, lambda: generate_checked(self.rollout, self.backbone, prompts, n, sampling))

    def run_to_the_limit(self) -> None:
        """Let every completion run to ``max_new_tokens``, to measure what a step costs at most. Training this way would be wrong: the
        policy could not end its answers."""
        self.to_the_limit = True

    def _prove_rollout(self, split: Split) -> None:
        """Let an engine that runs elsewhere show, once, that it has this model; the first process asks for all."""
        data = getattr(self.trainer, "datamodule", None)
        if self.rollout.exact or self._proven or data is None:
            return
        with self.together(), self.trainer.precision_plugin.forward_context():
            if self.trainer.is_global_zero:
                samples = few_samples(data.task_dataset(split, self.task), _PROVEN_ON)
                self.rollout.prove(self.backbone, self.encode(samples), self.proof_sampling())
        self._proven = True

    def proof_sampling(self) -> SamplingParams:
        """How completions are sampled that an engine is checked with."""
        return getattr(self, "sampling", None) or SamplingParams(self.validation.max_new_tokens)

    def watch_gap(self, logps_BGT: Tensor | None, sampled_logps_BGT: Tensor, mask_BGT: Tensor) -> None:
        """Stop where the engine's log-probabilities are no longer those of the trainer.

        Args:
            logps_BGT: the trainer's, under the policy that sampled; None where they were not computed.
            sampled_logps_BGT: the engine's.
            mask_BGT: tokens that count.

        Raises:
            TrainingError: the mean difference is beyond the engine's bound.
        """
        if logps_BGT is None or self.rollout.max_gap is None or self.to_the_limit:
            return  # completions that may not end are sampled from another distribution
        gap = float(((logps_BGT - sampled_logps_BGT).abs() * mask_BGT).sum() / mask_BGT.sum().clamp_min(1))
        with self.together():
            if not gap <= self.rollout.max_gap:
                raise TrainingError(
                    f"step {self.global_step}: the log-probabilities of {type(self.rollout).__name__} are {gap:.3g} nats a token from the "
                    f"trainer's, more than rollout.max_gap {self.rollout.max_gap:g}; look at update/sampler_gap of the steps before, and at what "
                    "the engine serves."
                )

    def note_outcomes(self, batch: CueBatch, groups: Sequence[RolloutGroup]) -> dict[str, float]:
        """Tell the data module's order how a rollout batch went; its curves."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, CueDataModule):
            return {}
        data.note_outcomes(batch, groups)
        return data.order.figures()

    def on_fit_start(self) -> None:
        """See :meth:`ResumableModule.on_fit_start`; also sets rewards up, and lets the rollout engine prove itself."""
        super().on_fit_start()
        for reward in self.rewards:
            try:
                reward.setup(self.device)
            except LocusError:
                raise
            except Exception as cause:
                raise PluginError(f"the reward {reward.name!r} cannot be set up: {type(cause).__name__}: {cause}") from cause
        self._prove_rollout("train")

    def on_validation_start(self) -> None:
        """Let the rollout engine prove itself, where nothing was trained before, and hold all weights until the end of the validation."""
        self._gathered = ExitStack()
        self._gathered.enter_context(gathered(self.backbone))
        self._prove_rollout("val")
        if not self.rollout.exact:
            with self.together():  # here, since a process whose share of a batch is empty generates nothing
                self.rollout.sync(self.backbone)

    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    def on_validation_end(self) -> None:
        """See :meth:`ResumableModule.on_validation_end`; also lets go of the weights of other processes."""
        self._gathered.close()
        super().on_validation_end()

    def on_test_end(self) -> None:
        """Let go of the weights of other processes."""
        self._gathered.close()

    on_predict_end = on_test_end

    def teardown(self, stage: str) -> None:
        """Let engine and rewards release what they hold."""
        self.rollout.close()
        for reward in self.rewards if stage == "fit" else ():
            reward.teardown()

    def configure_callbacks(self) -> list[L.Callback]:
        """Lightning tears a module down where training ends, and not where it fails."""
        return [_TeardownOnError()]


class _TeardownOnError(L.Callback):
    """Lets engine and rewards release what they hold when training fails."""

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        pl_module.teardown("fit")
