"""The training commands: one LightningCLI, with plugin names resolved first and a summary at the end."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich import get_console

import locus_lightning.data.coco.coco
import locus_lightning.data.corpus.corpus
import locus_lightning.data.synthetic.curriculum
import locus_lightning.data.synthetic.scenes
import locus_lightning.rollout.vllm_rollout
import locus_lightning.training.optimizers  # noqa: F401 - so that their class names are known to the parser
from locus_lightning.callbacks.checkpoints import Checkpoints
from locus_lightning.callbacks.loggers import KeepLogging
from locus_lightning.callbacks.pictures import CuePictures
from locus_lightning.callbacks.predictions import PredictionFile
from locus_lightning.callbacks.progress import Progress, ProgressLines
from locus_lightning.callbacks.run_folder import RunLock, check_writable, run_folder, use_run_folder
from locus_lightning.callbacks.run_report import RunReport
from locus_lightning.callbacks.stops import Stops, StopTraining
from locus_lightning.callbacks.summary import Summary, figures_table, log_hyperparameters, plain_figures
from locus_lightning.cli.continuing import check_checkpoint, keep_earlier, last_checkpoint, numbers_its_runs, runs_of
from locus_lightning.cli.messages import lost_process, mistake_behind, one_sentence, refused_by_a_class
from locus_lightning.cli.names import prepare
from locus_lightning.cli.save_config import SaveConfig
from locus_lightning.cli.setup import (
    check_before_loading,
    end_with_the_launcher,
    refuse_nan,
    set_up_screen,
    started_by_lightning,
    stop_at_once_on_ctrl_c,
    stopped_early,
)
from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.errors import CheckpointError, ConfigError, TrainingError
from locus_lightning.files import whole
from locus_lightning.study.run_page import PAGE, write_page
from locus_lightning.training.base import TaskModule
from locus_lightning.training.cold_start import ColdStart, cold_start
from locus_lightning.training.grpo import LocusModule
from locus_lightning.training.sharding import joined_for_saving

log = logging.getLogger("locus_lightning")


class LocusCLI(LightningCLI):
    """LightningCLI with a cold start before ``fit`` and figures after it."""

    folder: Path | None = None
    """The folder of the run that is continued."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is not model, data or trainer."""
        parser.add_argument(
            "--cold_start", type=ColdStart | None, default=None, help="A supervised stage before reinforcement; null for none."
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(CuePictures, "pictures")

    def _parse_ckpt_path(self) -> None:
        """Lightning looks into the checkpoint for hyper-parameters of the module; ours keep none there."""

    def _set_seed(self) -> None:
        """Refuse a seed that not every library takes."""
        seed = self.config[self.subcommand].get("seed_everything")
        if not isinstance(seed, bool) and isinstance(seed, int) and not 0 <= seed < 2**32:
            raise ConfigError(f"seed_everything is {seed}; it is a whole number from 0 to {2**32 - 1}.")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Find ``--ckpt_path last`` and go on in that run's folder."""
        config = self.config[self.subcommand]
        refuse_nan(config.as_dict())
        if config.get("weights_only") is None:
            config["weights_only"] = True  # our checkpoints hold tensors and plain containers; a pickle from a stranger runs code
        if config.get("ckpt_path") in ("last", "auto"):
            self._continue(config)
        if config.get("ckpt_path"):
            check_checkpoint(Path(config["ckpt_path"]), resume=self.subcommand == "fit")

    def _continue(self, config: Namespace) -> None:
        """Find the newest run, and go on in its folder; ``auto`` begins a run where there is none."""
        newest = last_checkpoint(config.trainer.logger)
        if newest is None and config["ckpt_path"] == "auto":
            config["ckpt_path"] = None
            log.info("no run to continue; beginning a new one")
            return
        if newest is None:
            raise CheckpointError(
                f"ckpt_path is last but no run under {runs_of(config.trainer.logger)} has checkpoints/last.ckpt; start without ckpt_path, or use auto."
            )
        config["ckpt_path"] = str(newest)
        if self.subcommand == "fit":
            self.folder = newest.parent.parent
            loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
            for logger in loggers:
                if isinstance(logger, Namespace) and numbers_its_runs(logger):
                    logger.init_args["version"] = self.folder.name
            keep_earlier(self.folder / "metrics.csv")
        log.info("continuing from %s", newest)

    def instantiate_classes(self) -> None:
        """Build trainer, model and data. What a class refuses by an error of its own is a mistake in its settings."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, MemoryError, AttributeError) as error:
            if isinstance(error, ArgumentError) or mistake_behind(error) is not None:
                raise
            raise ConfigError(refused_by_a_class(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Lightning's own checkpoint and progress callbacks are welcome; the one wants to be told, the other takes the place of ours."""
        settings = self.config_init[self.subcommand].trainer
        configured = settings.callbacks or []
        configured = configured if isinstance(configured, list) else [configured]
        if any(isinstance(callback, Checkpoint) for callback in configured):
            kwargs["enable_checkpointing"] = True
        if settings.enable_progress_bar is not False and not any(isinstance(callback, ProgressBar) for callback in configured):
            console = get_console()
            self.trainer_defaults["callbacks"].append(Progress() if console.is_terminal or console.is_jupyter else ProgressLines())
            kwargs["enable_progress_bar"] = console.is_terminal or console.is_jupyter
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, ZeroDivisionError, MisconfigurationException) as error:
            if mistake_behind(error) is not None:
                raise
            raise ConfigError(f"the trainer refuses its settings: {one_sentence(str(error))}") from error
        if self.folder is not None:
            use_run_folder(trainer, self.folder)
        return trainer

    def before_fit(self) -> None:
        """Everything that can be refused is refused here, then the cold start runs."""
        check_writable(self.trainer)
        self.summary = next(c for c in self.trainer.callbacks if isinstance(c, Summary))  # type: ignore[attr-defined]
        check_before_loading(self.trainer, self.model, self.datamodule, "fit")
        cold: ColdStart | None = self.config_init["fit"].get("cold_start")
        if cold and not self.model.rollout.exact:
            raise ConfigError(
                f"cold_start changes weights that {type(self.model.rollout).__name__} never gets; run it with HFRollout, export that model, and serve it."
            )
        resumed = bool(self.config["fit"].get("ckpt_path"))
        if cold and self.trainer.world_size > 1 and not resumed:
            raise ConfigError(
                "cold_start runs on one process; set trainer.devices to 1, or cold_start to null and start from a checkpoint."
            )
        if cold and isinstance(self.model, LocusModule) and not resumed:
            started = perf_counter()
            cold_start(cold, self.model, self.datamodule, self.trainer)
            self.summary.seconds["cold start"] += perf_counter() - started

    def after_fit(self) -> None:
        """Validate, unless the last step was followed by a validation, save the weights as a Hugging Face folder, and sum up."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        stops = next(c for c in callbacks if isinstance(c, Stops))
        checkpoints = next(c for c in callbacks if isinstance(c, Checkpoints))
        if (reason := self.model.why_stopped()) is not None:
            raise reason
        checkpoints.check_saved(self.trainer)
        if stops.signum:
            raise StopTraining(stops.signum, self.trainer.global_step)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = run_folder(self.trainer)
        after = self._validate()
        with joined_for_saving(self.model.backbone, self.trainer.is_global_zero):
            if folder is not None and self.trainer.is_global_zero:
                self.model.backbone.save_pretrained(folder / "model", {**self.model.task.remember(), "trained_on": self.model.trained_on()})
        quarantined = self.datamodule.quarantined_by_all()
        if self.trainer.is_global_zero and after:
            data = {**self.datamodule.source.summary(), "quarantined": quarantined}
            seed = self.config["fit"]["seed_everything"]
            self.summary.finish(folder, self.model, after, seed, data)
            log_hyperparameters(self.trainer, self.model.task, self.config["fit"].as_dict(), after)
            if folder is not None:
                self._write_page(folder)
                print(f"run folder: {folder}   (tensorboard --logdir {folder.parent})")

    @staticmethod
    def _write_page(folder: Path) -> None:
        """The run's page. The run is over and saved: what goes wrong here is a warning."""
        try:
            print(f"report: {write_page([folder], folder / PAGE)}")
        except Exception as cause:
            log.warning("the page about this run could not be written (%s: %s); try locus report %s.", type(cause).__name__, cause, folder)

    def _validate(self) -> dict[str, float]:
        if self.trainer.limit_val_batches == 0:
            return {}
        if self.summary.validated_at == self.trainer.global_step:
            figures = self.trainer.callback_metrics
            return {name: float(value) for name, value in figures.items() if name.startswith(("val/", "eval/"))}
        results = self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False, weights_only=True)
        return {name: float(value) for name, value in results[0].items()} if results else {}

    def before_validate(self) -> None:
        """See :func:`check_before_loading`."""
        check_before_loading(self.trainer, self.model, self.datamodule, "validate")

    before_test = before_validate
    before_predict = before_validate

    def after_validate(self) -> None:
        """Print the figures as a table, and write them to ``figures.json``."""
        from rich.console import Console

        figures = {f"val/{k.removeprefix('val/')}": float(v) for k, v in self.trainer.callback_metrics.items()}
        if not self.trainer.is_global_zero or f"val/{self.model.task.headline}" not in figures:
            return
        Console().print(figures_table(self.model.task, {}, figures, self.model.validation))
        if (folder := run_folder(self.trainer)) is not None:
            with whole(folder / "figures.json") as beside:
                beside.write_text(json.dumps(plain_figures(figures), indent=1, sort_keys=True) + "\n")
            print(f"figures: {folder / 'figures.json'}")

    after_test = after_validate

    def after_predict(self) -> None:
        """Say where the answers are."""
        written = [c.path for c in self.trainer.callbacks if isinstance(c, PredictionFile) and c.path]  # type: ignore[attr-defined]
        print(*(f"answers: {path}" for path in written), sep="\n")


def run(arguments: Sequence[str], kind: type[LocusCLI] = LocusCLI, *, save_config: bool = True) -> None:
    """Parse ``arguments`` (``fit --config ...``) and run, as ``kind`` does it.

    Raises:
        LocusError: a mistake of the user, as one sentence.
    """
    try:
        _run(arguments, kind, save_config)
    except Exception:
        if (signum := stopped_early()) is None:
            raise
        print("stopped before training began", file=sys.stderr)
        raise SystemExit(128 + signum) from None


def _run(arguments: Sequence[str], kind: type[LocusCLI], save_config: bool) -> None:
    set_up_screen()
    stop_at_once_on_ctrl_c()
    end_with_the_launcher()
    sys.argv = [sys.argv[0], *prepare(arguments)]  # what the parser reads, and a strategy that starts processes runs again
    try:
        kind(
            TaskModule,
            CueDataModule,
            save_config_callback=SaveConfig if save_config else None,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, **{c: {"exit_on_error": False} for c in LightningCLI.subcommands()}},
            trainer_defaults={
                "callbacks": [KeepLogging(), RunLock(), Stops(), Summary(), PredictionFile(), RunReport()],
                "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "name": "locus"}},
                "num_sanity_val_steps": -1,
                "check_val_every_n_epoch": None,
                "log_every_n_steps": 1,
                "enable_checkpointing": False,
            },
        )
    except StopTraining as stop:
        where = "before training began" if not stop.step else f"at step {stop.step}; continue with: locus fit --config ... --ckpt_path last"
        if started_by_lightning():  # another status makes the process that started this one kill the others, which may still be saving
            raise SystemExit(0) from None
        print(f"stopped {where}", file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    except MisconfigurationException as error:
        raise ConfigError(f"the trainer refuses its settings: {one_sentence(str(error))}") from error
    except RuntimeError as error:
        if not lost_process(error):
            raise
        raise TrainingError(
            f"another process of this run is gone ({one_sentence(str(error))}); its own messages say why. The newest checkpoint is whole: "
            "continue with --ckpt_path last, on as many processes."
        ) from error
    except (ArgumentError, ValueError, TypeError) as error:
        mistake = mistake_behind(error)
        if mistake is not None:
            raise mistake from None
        if isinstance(error, ArgumentError):
            raise ConfigError(one_sentence(str(error))) from error
        raise
