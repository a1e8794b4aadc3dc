"""The page about a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from locus_lightning.errors import DataError
from locus_lightning.study.run_page import figures_of, read_run, write_page

SCENES = Path(__file__).resolve().parents[1] / "configs" / "scenes_llava.yaml"
RUN = ["fit", "--config", SCENES, "--trainer.max_steps=2", "--trainer.enable_progress_bar=false"]


@pytest.fixture
def run(locus, tmp_path):
    status, out, err = locus(*RUN)
    assert status == 0, err
    assert "report: " in out
    return tmp_path / "runs" / "locus" / "version_0"


def test_every_run_ends_with_a_page_that_needs_no_other_file(run):
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3, "curves, phases, a picture of samples"
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    summary = json.loads((run / "summary.json").read_text())
    assert f"<td>iou<td>{summary['before']['iou']:.3f}" in page
    assert "optimiser steps" in page
    assert "worst" in page
    assert "kl_coef" in page


def test_several_runs_stand_side_by_side(run, locus, tmp_path):
    assert locus(*RUN)[0] == 0
    status, out, err = locus("report", run, run.with_name("version_1"))
    assert status == 0, err
    assert out.strip() == "report.html"
    page = (tmp_path / "report.html").read_text()
    assert "locus/version_0 before" in page
    assert "locus/version_1 after" in page


def test_a_run_that_has_not_ended_and_one_with_a_csv_file(locus, tmp_path, run):
    (run / "summary.json").unlink()
    assert "has not ended" in write_page([run], tmp_path / "a.html").read_text()
    status, _, err = locus(*RUN, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
    assert status == 0, err
    facts = read_run(next((tmp_path / "csv").rglob("config.yaml")).parent)
    assert len(facts.scalars["update/loss"][1]) == 2
    assert len(facts.pictures) == 1
    assert facts.completions[0] == ["sample", "which", "reward", "answer", "text"]


def test_what_models_and_files_say_is_escaped(run, tmp_path):
    (run / "config.yaml").write_text("a: <script>alert(1)</script>\n")
    assert "<script>" not in write_page([run], tmp_path / "page.html").read_text()


def test_intervals_of_shares_by_hand(run):
    facts = read_run(run)
    facts.summary = {
        "iou_before": 0.1,
        "before": {},
        "after": {"acc0.5": 0.25, "samples": 100.0, "iou": 0.3, "acc0.5_tiny": 0.5, "samples_tiny": 25.0},
    }
    assert figures_of([facts]) == [["iou", "", "0.300"], ["acc0.5", "", "0.250 ± 0.085"], ["samples", "", "100"],
                                   ["acc0.5_tiny", "", "0.500 ± 0.196"], ["samples_tiny", "", "25"]]  # fmt: skip


def test_a_folder_that_is_no_runs_is_refused_in_a_sentence(locus, tmp_path):
    for folder, message in ((tmp_path / "gone", "there is no folder"), (tmp_path, "no run's folder")):
        status, _, err = locus("report", folder)
        assert (status, message in err) == (2, True)
    with pytest.raises(DataError):
        read_run(tmp_path)
