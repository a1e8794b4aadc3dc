"""lmms-eval's share of the paper's tables: how it is started, how its results file is read. The stand-in writes what lmms-eval 0.7.3 writes."""

from __future__ import annotations

import json
import os

import pytest

from locus_lightning.errors import ConfigError, DataError
from locus_lightning.evaluation.lmms_eval import ABOUT, headline, run_task
from locus_lightning.evaluation.paper import ROWS
from locus_lightning.evaluation.runner import Settings

REALWORLDQA = next(row for row in ROWS if row.task == "realworldqa")
MATHVISION = next(row for row in ROWS if row.task == "mathvision_test")
STAND_IN = """#!/bin/sh
echo "$@" >> {calls}
while [ $# -gt 0 ]; do [ "$1" = --output_path ] && out="$2"; shift; done
if [ -n "{results}" ]; then mkdir -p "$out/model"; echo '{results}' > "$out/model/20260101_000000_results.json"; fi
echo "  File oops" ; echo "the hub is not reached"
"""


@pytest.fixture
def python(tmp_path):
    def make(results=""):
        path = tmp_path / "python"
        path.write_text(STAND_IN.format(calls=tmp_path / "calls", results=json.dumps(results) if results else ""))
        os.chmod(path, 0o755)
        return path

    return make


def reported(task, **figures):
    return {"results": {task: {"alias": task, **figures, "exact_match_stderr,none": "N/A"}}}


def test_a_task_is_run_once_and_its_figure_read(python, tmp_path):
    program = python(reported("realworldqa", **{"exact_match,none": 0.625}))
    settings = Settings(think=True, limit=3)
    for _ in range(2):
        assert run_task(program, "runs/a", REALWORLDQA, tmp_path / "out", settings, "bfloat16") == 0.625
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith("-m lmms_eval --model locus --model_args pretrained=runs/a,dtype=bfloat16,think=True,raw=")
    assert "--tasks realworldqa --batch_size 8" in call
    assert call.endswith("--limit 3")
    with pytest.raises(ConfigError, match="holds a run of"):
        run_task(program, "runs/b", REALWORLDQA, tmp_path / "out", settings, "bfloat16")


def test_a_run_without_results_quotes_its_log_and_can_be_tried_again(python, tmp_path):
    with pytest.raises(DataError, match="no result for realworldqa; its log is .*the hub is not reached"):
        run_task(python(), "a", REALWORLDQA, tmp_path / "out", Settings(), "float32")
    assert (tmp_path / "out" / ABOUT).is_file()
    program = python(reported("realworldqa", **{"exact_match,none": 0.5}))
    assert run_task(program, "a", REALWORLDQA, tmp_path / "out", Settings(), "float32") == 0.5


def test_percentages_and_other_names(tmp_path):
    assert headline(reported("mathvision_test", **{"mathvision_standard_eval,none": 23.4}), MATHVISION) == pytest.approx(0.234)
    with pytest.raises(DataError, match=r"reports other, and no mathvision_standard_eval"):
        headline(reported("mathvision_test", **{"other,none": 1}), MATHVISION)
    with pytest.raises(ConfigError, match="is no file"):
        run_task(tmp_path / "nothing", "a", MATHVISION, tmp_path / "out", Settings(), "float32")


def test_every_row_is_owned_or_delegated():
    assert all(bool(row.folder) != bool(row.task) for row in ROWS)
    assert all(row.metric for row in ROWS if row.task)
