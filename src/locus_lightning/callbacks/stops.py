"""Ctrl-C, SIGTERM, SIGHUP and SLURM's early signal: a run that is told to stop saves its state first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch

from locus_lightning.training.boundary import step_just_ended
from locus_lightning.training.resume import ResumableModule

_STEP_FIRST = signal.SIGINT
"""The signal that lets the step finish; the others come with a deadline."""

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class StopTraining(BaseException):
    """Ends training at once; raised inside a step that can be dropped. Not an ``Exception``: no reward or plugin may catch it.

    Args:
        signum: the signal that asked for it.
        step: optimiser steps taken; None before training.
    """

    def __init__(self, signum: int, step: int | None = None) -> None:
        super().__init__(signum, step)
        self.signum, self.step = signum, step


class Stops(L.Callback):
    """Stops a run that is told to, without losing anything.

    The first Ctrl-C lets the optimiser step finish. A second Ctrl-C, and SIGTERM (``kill``, ``docker stop``, SLURM, spot machines), SIGHUP (a lost
    ssh connection), SIGUSR1 and SIGUSR2 (SLURM's early warning) drop the step at hand, since they come with a deadline: what is saved is the state
    of the last step boundary, so the step is done again by whoever continues. With several processes every signal waits for the end of the
    step, because all of them have to stop together; it is enough that one of them is told.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()
        self._trainer: L.Trainer | None = None

    # ---- listening -------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember who listens now."""
        self._previous = {signum: signal.getsignal(signum) for signum in _SIGNALS}

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen, where signals can be caught: in the main thread. Not earlier, since Lightning installs handlers of its own first, and in the end
        puts back what it found then."""
        self._listen(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See :meth:`on_sanity_check_start`."""
        self._listen(trainer)

    def _listen(self, trainer: L.Trainer) -> None:
        if threading.current_thread() is not threading.main_thread() or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._trainer = trainer
        for signum in _SIGNALS:
            if signum == getattr(signal, "SIGHUP", None) and signal.getsignal(signum) is signal.SIG_IGN:
                continue  # nohup
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a process that was forked from this one has inherited the handler
            if signum != signal.SIGINT:  # Ctrl-C is for the parent, which ends it; what a pool sends to its processes is for them
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        if self._trainer is None:  # the run is over
            return
        again, self.signum = bool(self.signum), self.signum or signum
        module = self._trainer.lightning_module
        if not isinstance(module, ResumableModule):
            return
        module.stopping = module.stopping or self._trainer.world_size == 1
        if self._trainer.world_size == 1 and (again or signum != _STEP_FIRST) and self._may_drop(module):
            raise StopTraining(signum, self._trainer.global_step)
        if again and self._trainer.world_size > 1:  # Lightning ends the other processes of this run then
            raise KeyboardInterrupt
        if not again:
            name = signal.Signals(signum).name
            how = "press Ctrl-C again to stop at once" if signum == _STEP_FIRST else "the state is saved first"
            print(f"\n{name}: stopping after this step; {how}.", flush=True)

    def _may_drop(self, module: ResumableModule) -> bool:
        """Whether the work at hand can be dropped: a step before the optimiser acts, or anything before the first step."""
        trainer = self._trainer
        nothing_yet = trainer is not None and not module.has_boundary and trainer.global_step == 0
        return (module.may_abandon or nothing_yet) and not module.saving

    # ---- stopping --------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """A signal that came at the very end of a step: begin no other one."""
        begins = batch_idx % trainer.accumulate_grad_batches == 0
        if begins and self.signum and trainer.world_size == 1 and isinstance(pl_module, ResumableModule) and pl_module.may_abandon:
            raise StopTraining(self.signum, trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """At a step boundary: stop, if any process is told to."""
        if not step_just_ended(trainer):
            return
        if trainer.world_size > 1:
            signal_here = torch.tensor(float(self.signum), device=trainer.strategy.root_device)
            agreed = int(trainer.strategy.reduce(signal_here, reduce_op="max"))  # type: ignore[arg-type]
            self.signum = max(self.signum, agreed)  # a signal that comes meanwhile is for the next step
        else:
            agreed = self.signum
        if agreed:
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # no validation on the way out

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A stop during a validation ends training here, not a step later."""
        if self.signum and trainer.world_size == 1 and trainer.state.fn == "fit":
            trainer.should_stop = True
            trainer.limit_val_batches = 0
            if trainer.sanity_checking:
                raise StopTraining(self.signum)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back; Lightning does not tear callbacks down then."""
        self._restore()

    def _restore(self) -> None:
        self._trainer = None
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._previous.items():
                signal.signal(signum, handler)
        self._previous = {}
