from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from locus_lightning.callbacks.media import log_media, markdown
from locus_lightning.callbacks.pictures import completions_table
from locus_lightning.callbacks.run_folder import use_run_folder
from locus_lightning.callbacks.summary import Summary
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.tasks.cue_search import CueMetrics, CueSearch
from locus_lightning.tasks.pictures import colour_of, contact_sheet
from locus_lightning.types import RolloutGroup
from tests.conftest import make_completion, make_sample


@pytest.fixture
def group():
    sample = make_sample(100, 80, (10, 12, 44, 40))
    completions = (
        make_completion("<think>a|b</think><answer>[10, 12, 44, 40]</answer>", (10, 12, 44, 40)),
        make_completion("none", None, False),
        make_completion("x", (60, 50, 300, 300)),
    )
    return RolloutGroup(sample, None, completions, {"iou": (1.0, 0.0, 0.0)}, (1.0, 0.0, 0.1))


def test_rewards_are_coloured_from_red_to_green():
    assert colour_of(0.0)[0] > 200 > colour_of(0.0)[1]
    assert colour_of(1.0)[1] > 200 > colour_of(1.0)[0]
    assert colour_of(-3) == colour_of(0)


def test_the_true_box_is_drawn_where_it_is(group):
    picture = np.asarray(CueSearch().draw(group))
    scale = 448 / 100
    x, y = round(10 * scale), round((12 + 40) / 2 * scale) + 24
    assert (picture[y, x - 1 : x + 2] == 255).all(axis=1).any(), "white on the left edge of the true box"


def test_a_sheet_holds_all_groups(group):
    one, three = contact_sheet(CueSearch(), [group]), contact_sheet(CueSearch(), [group] * 3)
    assert three.size == (2 * one.width, 2 * one.height)


def test_best_and_worst_are_in_the_table(group):
    table = markdown(completions_table([group]))
    assert "| best | 1.00 | 10, 12, 44, 40 |" in table
    assert "| worst | 0.00 | none |" in table
    assert "a\\|b" in table


def test_metrics_by_size_bin_and_the_floor():
    metrics = CueMetrics()
    metrics.update(
        [make_completion("", (0, 0, 20, 20), score=1.0), make_completion("", None, False)],
        [make_sample(100, 100, (0, 0, 20, 20), s) for s in (0, 1)],
    )
    metrics.update([make_completion("", (0, 0, 50, 100), score=0.5)], [make_sample(100, 100, (0, 0, 100, 100))])
    figures = {name: float(value) for name, value in metrics.compute().items()}
    assert figures["iou"] == pytest.approx(0.5)
    assert figures["acc0.5"] == pytest.approx(2 / 3)
    assert figures["acc0.75"] == pytest.approx(1 / 3)
    assert figures["samples"] == 3
    assert figures["parse_rate"] == pytest.approx(2 / 3)
    assert figures["area_ratio"] == pytest.approx(0.75)
    assert figures["floor"] == pytest.approx((1 + 0.04 + 0.04) / 3), "the whole image is the best single trivial box here"


def test_the_summary_is_written_and_printed(tmp_path, capsys):
    after = {"val/iou": 0.5, "val/acc0.5": 0.6, "val/acc0.75": 0.2, "val/samples": 10.0, "val/floor": 0.1, "val/parse_rate": 1.0}
    summary = Summary()
    summary.seconds["rollout"] = 12.3456
    before = {"val/iou": 0.25, "val/acc0.5": 0.2, "val/acc0.75": 0.1, "val/parse_rate": 0.5}
    module = SimpleNamespace(before=before, task=CueSearch(), validation=SamplingParams(temperature=0.0), skipped_steps=2)
    summary.finish(tmp_path / "run", module, after, 3, {})
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (written["iou_before"], written["iou_after"], written["floor"], written["seed"]) == (0.25, 0.5, 0.1, 3)
    assert written["seconds"] == {"rollout": 12.35}
    assert written["skipped_steps"] == 2
    out = capsys.readouterr().out
    assert "0.250 -> 0.500" in out


TABLE = [["sample", "text"], ["a", "one | two\n<b>"]]


class _Trainer:
    """What `log_media` asks of a trainer."""

    def __init__(self, folder, *loggers):
        self.loggers, self.fast_dev_run = list(loggers), False
        use_run_folder(self, folder)


def test_pictures_that_no_logger_takes_lie_in_the_runs_folder(tmp_path):
    log_media(_Trainer(tmp_path, CSVLogger(tmp_path)), "cues", Image.new("RGB", (8, 6), "red"), "completions", TABLE, 7)
    assert Image.open(tmp_path / "pictures" / "cues-000007.png").size == (8, 6)
    assert "one \\| two &lt;b>" in (tmp_path / "pictures" / "completions-000007.md").read_text()


def test_tensorboard_takes_them_and_nothing_lies_in_the_folder(tmp_path):
    log_media(_Trainer(tmp_path, TensorBoardLogger(tmp_path)), "cues", Image.new("RGB", (8, 6)), "completions", TABLE, 7)
    assert not (tmp_path / "pictures").exists()


def test_weights_and_biases_offline_takes_them(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log_media(_Trainer(tmp_path, logger), "cues", Image.new("RGB", (8, 6)), "completions", TABLE, 7)
    logger.experiment.finish()
    assert list(tmp_path.rglob("media/images/cues_*.png"))
    assert not (tmp_path / "pictures").exists()


def test_mlflows_file_store_takes_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip("mlflow")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns")
    log_media(_Trainer(tmp_path, logger), "cues", Image.new("RGB", (8, 6)), "completions", TABLE, 7)
    assert list(tmp_path.rglob("artifacts/pictures/cues-000007.png"))
    assert list(tmp_path.rglob("artifacts/pictures/completions-000007.md"))
