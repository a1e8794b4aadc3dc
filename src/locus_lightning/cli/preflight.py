"""``locus preflight``: what a run would do, found out before hours are spent on it.

A configuration is parsed as ``fit`` would; checkpoint, data, frames and prompts of a few samples are shown as the model sees them; then two
rollout batches are trained on, the longest prompts with completions that run to their limit. Memory and time of the second are measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from locus_lightning.callbacks.preflight import PreflightCallback
from locus_lightning.callbacks.run_folder import use_run_folder
from locus_lightning.callbacks.run_report import RunReport
from locus_lightning.cli.fit import LocusCLI, run
from locus_lightning.errors import ConfigError
from locus_lightning.training.sharding import NAME as FSDP2


def preflight_command(arguments: Sequence[str]) -> int:
    """Run it; 1 where the card is too small."""
    parser = argparse.ArgumentParser(
        "locus preflight",
        description="Look at checkpoint, data and prompts, take a step on the longest prompts to warm up, another to measure, and tell memory and time. Everything that "
        "`locus fit` takes is taken too.",
        epilog="example: locus preflight --config configs/llava.yaml --card 24",
    )
    parser.add_argument("--config", required=True, help="as for locus fit")
    parser.add_argument("--card", type=float, metavar="GIB", help="memory to compare with; default: this GPU's, else none")
    parser.add_argument("--samples", type=int, default=5, help="samples to show (default 5)")
    parser.add_argument("--save", type=Path, default=Path("runs/preflight"), metavar="FOLDER", help="for the picture and the report")
    options, rest = parser.parse_known_args(arguments)
    if options.samples < 1:
        raise ConfigError(f"--samples is {options.samples}; it is at least 1.")
    probe = PreflightCallback(options.samples, options.card, options.save)

    class PreflightCLI(LocusCLI):
        """``fit`` for two rollout batches, the second measured."""

        def before_instantiate_classes(self) -> None:
            """A few optimiser steps, and nothing that writes."""
            super().before_instantiate_classes()
            trainer = self.config["fit"].trainer
            if FSDP2 in str(trainer.strategy).lower():  # by name, or as a class with settings
                raise ConfigError(
                    "locus preflight measures one process, and with trainer.strategy fsdp2 none holds the model alone; `locus fit` with "
                    "--trainer.max_steps=1 tells, before its first step, the memory that every process needs."
                )
            probe.max_steps, self.config["fit"]["cold_start"] = trainer.max_steps, None
            probe.limit_val_batches = 1.0 if trainer.limit_val_batches is None else trainer.limit_val_batches
            trainer.max_steps, trainer.max_epochs, trainer.devices, trainer.num_nodes = 2, -1, 1, 1  # other processes would run fit itself
            trainer.limit_val_batches, trainer.num_sanity_val_steps, trainer.logger = 0, 0, False
            trainer.enable_progress_bar = trainer.enable_model_summary = False

        def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
            """A trainer without a run folder."""
            trainer = super().instantiate_trainer(**kwargs)
            use_run_folder(trainer, None)
            return trainer

        def before_fit(self) -> None:
            """All that `fit` refuses is refused here too."""
            super().before_fit()
            others = [c for c in self.trainer.callbacks if not isinstance(c, RunReport)]  # type: ignore[attr-defined]
            self.trainer.callbacks = [probe, *others]  # type: ignore[attr-defined]

        def after_fit(self) -> None:
            """Instead of saving a model: the verdict."""
            probe.verdict()

    run(["fit", "--config", options.config, *rest], PreflightCLI, save_config=False)
    return int(probe.too_big)
