"""A study file: what it holds, and the configuration of each of its runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from locus_lightning.errors import ConfigError
from locus_lightning.evaluation.benchmarks import SUITES
from locus_lightning.evaluation.runner import RESULT, folder_name
from locus_lightning.training.config_files import locate, read_full

EVALUATIONS = "eval"
"""The folder of a study's evaluations, beside those of its runs."""

MODEL = "model"
"""A run's folder of trained weights, evaluated even where nothing was learned."""

SHORT = {"checkpoint": "model.init_args.backbone.init_args.checkpoint"}
"""Keys that a configuration writes short, and the place that they stand for."""

OPTIONS = ("suite", "data", "number", "limit", "batch-size", "max-new-tokens", "think", "dtype")
"""What ``evaluate`` may say: options of ``locus eval``."""


@dataclass(frozen=True)
class Arm:
    """One row of a study.

    ``change`` maps dotted keys of the base configuration to new values; ``paper`` holds the paper's own figures for the row.
    """

    name: str
    label: str
    change: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study file, read.

    ``groups`` names the comparisons, each a list of arms (``base`` stands for the model before training); ``evaluate`` the benchmark that
    every trained model is asked, and the model before training.
    """

    title: str
    base: Path
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    groups: Mapping[str, Sequence[str]]
    common: Mapping[str, Any]
    evaluate: Mapping[str, Any]
    paper_base: Mapping[str, float]

    @property
    def model(self) -> str:
        """The model that is trained, as the base configuration names it; a folder's whole path.

        Raises:
            ConfigError: it names none.
        """
        place: Any = changed(self, self.common, "common")
        try:
            name = str(place["model"]["init_args"]["backbone"]["init_args"]["checkpoint"])
        except (KeyError, TypeError):
            raise ConfigError(
                f"{self.base} names no model.init_args.backbone.init_args.checkpoint; without it the study can evaluate nothing before training."
            ) from None
        path = Path(name).expanduser()
        return str(path.resolve()) if path.exists() else name

    @property
    def on_cpu(self) -> bool:
        """Whether its runs say that they train on the CPU."""
        trainer = changed(self, self.common, "common").get("trainer")
        return isinstance(trainer, dict) and trainer.get("accelerator") == "cpu"


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: it is missing, no YAML, or not of the form of :class:`Study`: title, base, seeds, common, arms (label, change, paper),
            groups, evaluate, paper_base.
    """
    path = locate(path)
    try:
        content = yaml.safe_load(path.read_text())
        arms = tuple(Arm(name, **{"label": name, **(facts or {})}) for name, facts in content["arms"].items())
        study = Study(
            content.get("title", path.stem), path.parent / content["base"], tuple(int(s) for s in content["seeds"]), arms,
            content.get("groups", {"arms": [arm.name for arm in arms]}), content.get("common", {}), dict(content.get("evaluate", {})),
            content.get("paper_base", {}),
        )  # fmt: skip
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as cause:
        raise ConfigError(f"{path} is not a study: it needs base, seeds and arms ({type(cause).__name__}: {cause}).") from cause
    unknown = sorted({name for names in study.groups.values() for name in names} - {arm.name for arm in arms} - {"base"})
    if unknown or not arms or not study.seeds or not study.base.is_file():
        what = f"its groups name unknown arms {unknown}" if unknown else f"it needs arms, seeds and an existing base ({study.base})"
        raise ConfigError(f"{path}: {what}.")
    strange = sorted(set(study.evaluate) - set(OPTIONS))
    if strange or (study.evaluate and study.evaluate.get("suite") not in SUITES):
        what = (
            f"evaluate knows no {', '.join(strange)}; it takes {', '.join(OPTIONS)}"
            if strange
            else f"evaluate.suite is one of {', '.join(SUITES)}"
        )
        raise ConfigError(f"{path}: {what}.")
    return study


def changed(study: Study, changes: Mapping[str, Any], whose: str) -> dict[str, Any]:
    """The base configuration, its short forms written out, with new values at dotted keys.

    Raises:
        ConfigError: a key lies in nothing.
    """
    config = read_full(study.base)
    for key, value in changes.items():
        *way, last = SHORT.get(key, key).split(".")
        place: Any = config
        for step in way:
            place = place.get(step) if isinstance(place, dict) else None
            if not isinstance(place, dict):
                raise ConfigError(f"{whose} changes {key}, but {study.base} has no {step} there.")
        place[last] = copy.deepcopy(value)
    return config


def configuration(study: Study, arm: Arm, seed: int, folder: Path) -> dict[str, Any]:
    """The whole configuration of one run: the base with the study's and the arm's changes.

    Raises:
        ConfigError: a changed key lies in nothing.
    """
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder), "name": "", "version": f"{arm.name}-{seed}"}}
    own = {"seed_everything": seed, "data.seed": seed, "trainer.logger": logger}
    return changed(study, {**study.common, **arm.change, **own}, f"arm {arm.name}")


def summary_of(folder: Path, run: str) -> Path:
    """What a run writes when it is trained."""
    return folder / run / "summary.json"


def result_of(study: Study, folder: Path, model: str) -> Path:
    """What the evaluation of a model, :attr:`Study.model` or ``RUN/model``, writes when it is done."""
    return folder / EVALUATIONS / study.evaluate["suite"] / folder_name(model) / RESULT
