"""What a training checkpoint holds, and how a run is continued from it: the half of the training modules that has nothing to do with a method."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from locus_lightning.backbones.base import Backbone
from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.errors import CheckpointError, TrainingError
from locus_lightning.ranks import from_all
from locus_lightning.training.boundary import Boundary, step_just_ended, validation_is_due
from locus_lightning.training.settings import changes, check_resumed, run_settings, take_over_rates
from locus_lightning.training.sharding import own_piece, whole
from locus_lightning.training.state import check_weights, generator_state, set_generator_state

log = logging.getLogger("locus_lightning")


class ResumableModule(L.LightningModule):
    """Base of :class:`~locus_lightning.training.base.TaskModule`: checkpoints of step boundaries, steps that are skipped, settings that changed.

    A checkpoint always holds the state after a whole optimiser step, whoever saves it and when (:class:`Boundary`).
    """

    backbone: Backbone

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # a checkpoint holds what training changed
        self.before: dict[str, float] = {}
        self.skipped_steps = 0
        self.max_skipped_steps = 3
        self.stopping = False
        self.saving = False
        self.failed_together = False
        self.stated_groups: list[list[dict[str, Any]]] = []
        self._skipped_in_a_row = 0
        self._skipped_samples: list[str] = []
        self._boundary: Boundary | None = None
        self._may_validate = True
        self._resumed: dict[str, Any] | None = None
        self._loaded: set[str] = set()
        self._stop_is_due = False
        self._stepping = False

    # ---- this process ----------------------------------------------------------------------------------------------

    def note_rank_state(self) -> Callable[[], dict[str, Any]]:
        """The state of this process now: its generators. What takes long to pack is packed when the result is called."""
        state = generator_state()
        return lambda: state

    def load_rank_state(self, state: dict[str, Any]) -> None:
        """Take a packed state back."""
        set_generator_state(state)

    def step_samples(self) -> list[str]:
        """Names of the samples that the current step is made from."""
        return []

    def trained_on(self) -> dict[str, Any]:
        """Where the training data comes from (``CueSource.origin``); empty without a data module of ours."""
        data = getattr(self.trainer, "datamodule", None)
        return data.source.origin() if isinstance(data, CueDataModule) else {}

    # ---- steps -----------------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that each process does by itself: where it fails on one, all of them fail, so that they can save and none waits for ever.

        Raises:
            TrainingError: another process failed; it tells its own reason.
        """
        if self.trainer.world_size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as cause:
            error = cause
        self.failed_together = bool(self.trainer.strategy.reduce_boolean_decision(error is not None, all=False))
        if self.failed_together:
            raise error or TrainingError("training stopped because another process failed; its own message says why.")

    @property
    def has_boundary(self) -> bool:
        """Whether training has come to a step boundary, so that there is something to save."""
        return self._boundary is not None

    @property
    def may_abandon(self) -> bool:
        """Whether the step at hand can be dropped: weights and optimiser are as the last boundary left them."""
        boundary = self._boundary
        return boundary is not None and not self._stepping and boundary.step == self.trainer.global_step

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient norm before clipping; a step that is not finite is skipped, by every rank alike."""
        self._stepping = True
        grads = [p.grad for p in self.backbone.parameters() if p.grad is not None]
        if not grads:
            return
        norm = whole(torch.nn.utils.get_total_norm(grads))
        finite = bool(torch.isfinite(norm))
        if self.trainer.world_size > 1:
            finite = bool(self.trainer.strategy.reduce_boolean_decision(finite, all=True))
        self.log_dict({"update/grad_norm": norm, "update/lr": float(optimizer.param_groups[0]["lr"])})
        if finite:
            self._skipped_in_a_row, self._skipped_samples = 0, []
        else:
            for parameter in self.backbone.parameters():
                parameter.grad = None
            self._skip()
        self.log("update/skipped_steps", float(self.skipped_steps))

    def _skip(self) -> None:
        """Count a skipped step, name its samples, and ask for a stop when there were too many in a row."""
        samples = self.step_samples()
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        self._skipped_samples += [name for name in samples if name not in self._skipped_samples]
        log.warning("step %d: the gradient is not finite; the step is skipped (samples %s).", self.global_step, _few(samples))
        if self._skipped_in_a_row >= self._skips_allowed():
            self.trainer.should_stop = True

    def _skips_allowed(self) -> int:
        """Steps in a row that may be skipped; more with float16, whose scaler finds its scale by such steps."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return self.max_skipped_steps if scaler is None else max(20, self.max_skipped_steps)

    def why_stopped(self) -> TrainingError | None:
        """What ended training early by itself, or None."""
        broken = self.broken_weight()
        if self._skipped_in_a_row < self._skips_allowed():
            return TrainingError(f"the trained weight {broken} is not finite; continue from an earlier checkpoint.") if broken else None
        state = f"the weights themselves are not finite ({broken})" if broken else "the weights are still finite"
        return TrainingError(
            f"training stopped at step {self.global_step}: the gradients of {self._skipped_in_a_row} steps in a row were not finite, and {state}. "
            f"The samples were {_few(self._skipped_samples)}. Continue from a checkpoint of before with a lower learning rate, or look at the "
            "objective and the samples."
        )

    def broken_weight(self) -> str | None:
        """The name of a trained weight that is not finite, or None."""
        kept = self.backbone.saved_parameters()
        broken = (
            name
            for name, parameter in self.backbone.named_parameters()
            if name in kept and parameter.is_floating_point() and not bool(torch.isfinite(own_piece(parameter)).all())
        )
        here = next(broken, None)
        return next(filter(None, from_all(here, self.trainer.world_size)), None) if self.backbone.in_pieces else here

    # ---- saving ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what training changed, and the state of the last step boundary of every rank."""
        kept = {f"backbone.{name}" for name in self.backbone.saved_parameters()} | self._loaded
        checkpoint["state_dict"] = {k: v for k, v in checkpoint.get("state_dict", {}).items() if k in kept}
        if self._may_note() and step_just_ended(self.trainer):
            self.note_boundary()
        boundary = self._boundary
        usable = boundary is not None and boundary.step == self.trainer.global_step
        if boundary is not None and usable:
            boundary.write_into(checkpoint, self.trainer)
        own = (boundary.rank_state if boundary is not None and usable else self.note_rank_state())()
        checkpoint["locus"] = {
            "ranks": from_all(own, self.trainer.world_size),
            "before": dict(self.before),
            "inside_step": not usable and self.trainer.state.fn == "fit",
            "validation_due": boundary is not None and usable and boundary.validation_due,
            "skipped_steps": self.skipped_steps,
            "settings": run_settings(self),
            "trained_on": self.trained_on(),
        }

    def _may_note(self) -> bool:
        return self.trainer.state.fn == "fit" and self.trainer.training

    def note_boundary(self) -> None:
        """Note the state of a step boundary; the end of every optimiser step calls this."""
        due = self._may_validate and validation_is_due(self.trainer)
        self._boundary = Boundary.of(self.trainer, self.note_rank_state(), due)

    def on_validation_end(self) -> None:
        """The validation of this step is done: a run that continues from here does not do it again."""
        if self._boundary is not None and not self.trainer.sanity_checking and not self.stopping and self.trainer.state.fn == "fit":
            self._boundary = self._boundary.validated(self.note_rank_state())

    # ---- continuing ------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check a checkpoint and take its state back. Generators are set when the first step begins, after everything that may draw from them."""
        own = checkpoint.get("locus")
        if own is None:
            raise CheckpointError("the checkpoint was not written by locus (it holds no `locus` entry); give one from a run folder.")
        if self._trainer is None:  # load_from_checkpoint: weights alone are wanted, into a model that is loaded here
            self.backbone.load()
            check_weights(self.backbone, checkpoint["state_dict"])
            return
        fitting = self.trainer.state.fn == "fit"
        if len(own["ranks"]) != self.trainer.world_size and fitting:
            raise CheckpointError(
                f"the checkpoint comes from {len(own['ranks'])} process(es) and this run has {self.trainer.world_size}; continue with as many."
            )
        if own.get("inside_step") and fitting:
            raise CheckpointError(
                "the checkpoint was saved inside an optimiser step, whose gradients are lost; continue from checkpoints/last.ckpt of the run."
            )
        check_weights(self.backbone, checkpoint["state_dict"])
        self.before = dict(own["before"])
        self.skipped_steps = int(own.get("skipped_steps", 0))
        self._loaded = set(checkpoint["state_dict"])  # what lay in this checkpoint belongs into the next
        if fitting:
            rank = own["ranks"][min(self.trainer.global_rank, len(own["ranks"]) - 1)]
            self._resumed = {**own, "rank": rank, "loops": checkpoint["loops"]}

    def on_fit_start(self) -> None:
        """Before a checkpoint's optimiser state is restored: refuse settings that do not go with it."""
        self.stated_groups = [[_hyperparameters(group) for group in optimizer.param_groups] for optimizer in self.trainer.optimizers]
        self._may_validate = bool(self.trainer.limit_val_batches)
        if self._resumed is not None:
            half_used = bool(self._resumed["rank"].get("buffer"))
            check_resumed(self._resumed.get("settings", {}), run_settings(self), half_used=half_used)

    def on_train_start(self) -> None:
        """Processes start from the same weights and draw different rollouts. A resumed run says what has changed, and does the validation that
        was due where it stopped."""
        if self._resumed is None:
            if self.trainer.world_size > 1:
                torch.manual_seed(torch.initial_seed() + self.trainer.global_rank)
            return
        changed = changes(self._resumed.get("settings", {}), run_settings(self))
        take_over_rates(self.trainer.optimizers, self.lr_schedulers_in_order(), self.stated_groups)
        if changed and self.trainer.is_global_zero:
            log.info("changed from step %d on: %s", self.global_step, "; ".join(changed))
        rank, data = self._resumed["rank"], self.trainer.datamodule  # type: ignore[attr-defined]
        due = bool(self._resumed.get("validation_due")) and self._may_validate
        self._boundary = Boundary(
            self.global_step, self._resumed["loops"], lambda: rank, data.state_dict() if data is not None else {}, due
        )
        if due:
            self._finish_validation(rank)

    def lr_schedulers_in_order(self) -> list[Any]:
        """The learning rate scheduler of every optimiser."""
        return [config.scheduler for config in self.trainer.lr_scheduler_configs]

    def _finish_validation(self, rank: dict[str, Any]) -> None:
        """Run the validation that was due at the step of the checkpoint, with the generators as they stood then."""
        trainer, loop = self.trainer, self.trainer.fit_loop.epoch_loop
        log.info("step %d: the validation that was due here is done first.", self.global_step)
        self.load_rank_state(rank)
        loop.val_loop.restarting = False
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True
        if self._resumed is not None:
            self._resumed["rank"] = self.note_rank_state()()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """After a resume: take the rank's state back, once."""
        if self._resumed is not None:
            self.load_rank_state(self._resumed["rank"])
            self._resumed = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the boundary, and let a stop that a callback asks for (``max_time``, early stopping) wait for the end of the optimiser step.
        Lightning calls this after the callbacks' hooks."""
        self._stepping = False
        inside = not step_just_ended(self.trainer)
        if not inside:
            self.note_boundary()
        if inside and self.trainer.should_stop:
            self.trainer.should_stop, self._stop_is_due = False, True
        elif not inside and self._stop_is_due:
            self.trainer.should_stop, self._stop_is_due = True, False


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    """Settings of a parameter group as they are configured, whatever a schedule has made of the rate."""
    plain = {k: v for k, v in group.items() if k not in ("params", "initial_lr") and not isinstance(v, torch.Tensor)}
    return {**plain, "lr": group.get("initial_lr", group["lr"])}


def _few(names: Sequence[str], most: int = 4) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(names[:most]) or "not known"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
