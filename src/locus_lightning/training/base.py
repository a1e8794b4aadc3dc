"""What both training modules share: loading, optimiser, validation, prediction, and what a checkpoint holds."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable

from locus_lightning.backbones.base import Backbone
from locus_lightning.data.source import CueBatch, Split
from locus_lightning.errors import ConfigError, LocusError
from locus_lightning.ranks import from_all
from locus_lightning.rollout.base import RolloutEngine, SamplingParams
from locus_lightning.tasks.base import Task
from locus_lightning.tasks.cue_search import CueSearch
from locus_lightning.tasks.question_answering import task_of
from locus_lightning.training.checks import check_strategy
from locus_lightning.training.rollout_module import RolloutModule
from locus_lightning.training.sharding import shard
from locus_lightning.types import Completion, Content, Generation, Prepared, Prompt

log = logging.getLogger(__name__)


class TrainingCallback(L.Callback):
    """A callback that is told of rollouts too; :class:`LocusModule` calls these where a callback has them."""

    def on_rollout_start(self, trainer: L.Trainer, pl_module: L.LightningModule, samples: Sequence[Any]) -> None:
        """Before completions of ``samples`` are generated."""

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, groups: Sequence[Any]) -> None:
        """When a rollout batch is scored and cut; ``groups`` are its :class:`~locus_lightning.types.RolloutGroup` records."""


class TaskModule(RolloutModule):
    """Base of :class:`~locus_lightning.training.grpo.LocusModule` and :class:`~locus_lightning.training.sft.SupervisedModule`.

    Args:
        backbone: the model.
        task: what is asked and what is right.
        rollout: how completions are generated.
        validation: how they are sampled in validation; greedy unless said otherwise.
        optimizer: from parameters to an optimiser.
        schedule: of the learning rate after the warm-up.
        warmup_ratio: share of all steps over which the rate rises from 0.
        max_skipped_steps: steps in a row whose gradient may be not finite before training stops.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task | None,
        rollout: RolloutEngine,
        validation: SamplingParams,
        optimizer: OptimizerCallable,
        schedule: Literal["constant", "linear", "cosine"],
        warmup_ratio: float,
        max_skipped_steps: int = 3,
    ) -> None:
        super().__init__()
        if max_skipped_steps < 1:
            raise ConfigError(f"model.max_skipped_steps is {max_skipped_steps}; it is at least 1.")
        if not 0 <= warmup_ratio < 1:
            raise ConfigError(f"model.warmup_ratio is {warmup_ratio}; it is at least 0 and below 1.")
        self.task = task or CueSearch()
        self.task.adopt(backbone.remembers)
        self.backbone, self.rollout, self.validation = backbone, rollout, validation
        self.optimizer_callable, self.schedule, self.warmup_ratio = optimizer, schedule, warmup_ratio
        self.metrics = self.task.metrics()
        self.max_skipped_steps = max_skipped_steps
        self._stated: tuple[L.Trainer, int, Any] | None = None

    # ---- tasks -----------------------------------------------------------------------------------------------------

    def task_of(self, sample: Any) -> Task:
        """The task of a sample; plain questions, which supervised data may hold too, are a task of their own."""
        return task_of(self.task, sample)

    def contents(self, samples: Sequence[Any]) -> list[Content]:
        """The user messages of samples."""
        return [self.task_of(sample).messages(sample, self.backbone.frame(sample.image.size)) for sample in samples]

    def encode(self, samples: Sequence[Any] | CueBatch) -> list[Prompt]:
        """The prompts of samples, from what the loader's workers have prepared where they have."""
        prepared = samples.prepared if isinstance(samples, CueBatch) else None
        return self.backbone.encode(self.contents(list(samples))) if prepared is None else self.backbone.encode_prepared(prepared)

    def prepare(self, samples: Sequence[Any]) -> Sequence[Prepared] | None:
        """What of :meth:`encode` needs no weights; a loader's workers call it."""
        return self.backbone.prepare(self.contents(samples))

    def prepare_in_workers(self, split: Split) -> Callable[[Sequence[Any]], Sequence[Prepared] | None] | None:
        """How a loader's workers prepare the prompts of a split; None where they do not."""
        return self.prepare

    def complete(self, generation: Generation, sample: Any, prompt: Prompt) -> Completion:
        """A generation as a parsed, scored completion."""
        frame, text = self.backbone.frame(sample.image.size), self.backbone.decode(generation.ids_T)
        return self.task_of(sample).complete(text, sample, frame, prompt.opened, generation)

    # ---- set-up --------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Look at the checkpoint before weights are loaded, and let ``val_check_interval`` count optimiser steps."""
        if not self.backbone.loaded:
            self.backbone.check()
        self.rollout.check(self.backbone)
        if stage == "fit":
            _, accumulate, _ = self.stated_geometry()
            self._check_trainer()
            self.use_accumulation(accumulate)
            self._refuse_float16()
            self.try_optimizer()
            check_strategy(self)
        if stage == "fit" and self.trainer.precision == "bf16-true" and self.backbone.dtype == torch.float32 and not self.backbone.loaded:
            log.info("trainer.precision is bf16-true: backbone.dtype float32 becomes bfloat16; adapters stay float32.")
            self.backbone.dtype = torch.bfloat16
        half = self.backbone.dtype.itemsize < 4 and not self.backbone.adapter_rank
        if stage == "fit" and half and "deepspeed" not in type(self.trainer.strategy).__name__.lower():
            log.warning(
                "backbone.dtype is 16-bit with all weights trained: small steps round away; use float32 with precision bf16-mixed (over several "
                "GPUs with strategy fsdp2), or a strategy that keeps float32 copies (deepspeed)."
            )

    def _check_trainer(self) -> None:
        """Refuse what Lightning takes and nobody means.

        Raises:
            ConfigError: names the setting.
        """
        if self.trainer.strategy.root_device.type == "mps":
            raise ConfigError("trainer.accelerator is mps, which has no float64 for the figures; set trainer.accelerator: cpu.")
        passes, clip = self.trainer.accumulate_grad_batches, self.trainer.gradient_clip_val
        if not isinstance(passes, int) or passes < 1:
            raise ConfigError(f"trainer.accumulate_grad_batches is {passes}; it is at least 1.")
        if clip is not None and not 0 <= clip < float("inf"):
            raise ConfigError(f"trainer.gradient_clip_val is {clip}; it is 0 or more, or null for no clipping.")

    def try_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser over a few numbers: what its settings refuse is refused before weights load.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            return self.optimizer_callable([torch.nn.Parameter(torch.zeros(2, 2))])
        except LocusError:
            raise
        except Exception as cause:
            raise ConfigError(f"model.optimizer cannot be made: {type(cause).__name__}: {cause}. Correct its settings.") from cause

    def _refuse_float16(self) -> None:
        """float16 has no room for gradients without scaling, and scaling needs float32 weights."""
        full = not self.backbone.adapter_rank and self.backbone.dtype == torch.float16
        if full or self.trainer.precision == "16-true":
            what = "backbone.dtype is float16 with all weights trained" if full else "trainer.precision is 16-true"
            raise ConfigError(f"{what}: the first step would give NaN; use bfloat16, or float32 with precision 16-mixed.")

    def stated_geometry(self) -> tuple[L.Trainer, int, Any]:
        """This trainer's accumulation and validation interval as the user stated them, remembered from the first look."""
        if self._stated is None or self._stated[0] is not self.trainer:
            self._stated = (self.trainer, self.trainer.accumulate_grad_batches, self.trainer.val_check_interval)
        return self._stated

    def use_accumulation(self, passes: int) -> None:
        """Let an optimiser step take so many passes. Lightning counts an integer ``val_check_interval`` in passes, users in optimiser
        steps."""
        trainer, _, interval = self.stated_geometry()
        trainer.accumulate_grad_batches = passes
        if isinstance(interval, int) and not isinstance(interval, bool) and trainer.check_val_every_n_epoch is None:
            trainer.val_check_interval = interval * passes

    def to(self, *args: Any, **kwargs: Any) -> TaskModule:
        """Move to a device. A type is not taken: ``backbone.dtype`` decides it, adapters stay float32, and figures are summed in float64, which
        Lightning's ``bf16-true`` would round away."""
        device, _, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        return super().to(device=device) if device is not None else self

    def configure_model(self) -> None:
        """Load weights; free until here."""
        self.backbone.load()

    def shard(self) -> None:
        """Cut the weights into pieces, where the strategy asks for it; the end of ``configure_model``."""
        if self._trainer is not None:
            shard(self.backbone, self.trainer.strategy, self.gathers_16_bit)

    @property
    def gathers_16_bit(self) -> bool:
        """Whether processes that hold pieces of float32 weights gather them in bfloat16; adapters are gathered as they are."""
        return self.trainer.precision == "bf16-mixed" and not self.backbone.adapter_rank

    def configure_optimizers(self) -> Any:
        """The optimiser over what is trainable, with a warm-up and a schedule by step."""
        from transformers import get_scheduler

        optimizer = self.optimizer_callable(self.backbone.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_factor", 1.0)
        steps = self.trainer.estimated_stepping_batches
        if self.schedule != "constant" and steps == float("inf"):
            raise ConfigError(f"model.schedule is {self.schedule}, which needs an end: set trainer.max_steps or trainer.max_epochs.")
        total = 0 if steps == float("inf") else int(steps)
        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        scheduler = get_scheduler(name, optimizer, round(self.warmup_ratio * total), total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- validation ------------------------------------------------------------------------------------------------

    def answer(self, samples: Sequence[Any] | CueBatch, sampling: SamplingParams | None = None) -> list[Completion]:
        """One completion a sample, parsed and scored."""
        prompts = self.encode(samples)
        generations = self.generate(prompts, sampling)
        return [self.complete(one, sample, prompt) for one, sample, prompt in zip(generations, samples, prompts, strict=True)]

    def validation_step(self, batch: CueBatch, batch_idx: int) -> None:
        """Answer held-out samples and count; nothing once the run is to stop."""
        if self.stopping:
            return
        with self.together():
            self.count(batch)

    def count(self, batch: CueBatch) -> None:
        """Answer samples, and add them to the figures."""
        self.metrics.update(self.answer(batch), list(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the figures; those of the check before training are kept as ``before``. A validation that was cut short has none."""
        if self.stopping:
            self.metrics.reset()
            return
        figures = {f"val/{name}": float(value) for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        if self.trainer.sanity_checking:
            self.before |= figures  # callbacks may have added theirs
            for logger in self.loggers:
                logger.log_metrics(figures, step=0)
            return
        headline = f"val/{self.task.headline}"
        score = figures.pop(headline)
        self.log_dict(figures, rank_zero_only=True)
        self.log(headline, score, prog_bar=True, rank_zero_only=True)

    def test_step(self, batch: CueBatch, batch_idx: int) -> None:
        """Do the same as in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Do the same as in validation."""
        self.on_validation_epoch_end()

    def predict_step(self, batch: CueBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One record a sample, as its task writes it."""
        return [self.task_of(s).record(c, s) for c, s in zip(self.answer(batch), batch, strict=True)]

    # ---- callbacks -------------------------------------------------------------------------------------------------

    def tell_callbacks(self, hook: str, subject: Sequence[Any]) -> None:
        """Call a hook of :class:`TrainingCallback` on every callback that has it."""
        for callback in self.trainer.callbacks if self._trainer is not None else ():  # type: ignore[attr-defined]
            method = getattr(callback, hook, None)
            if method is not None:
                method(self.trainer, self, subject)

    def mean_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the processes that have a figure, which need not be the same ones for each. NaN is none."""
        rows = from_all({name: value for name, value in values.items() if value == value}, self.trainer.world_size)
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: statistics.fmean(row[name] for row in rows if name in row) for name in names}
