"""`locus plugins new`: every kind of package passes the tests that it comes with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from locus_lightning.objectives.base import Objective
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.testing import check_backbone, check_objective, check_rollout
from locus_lightning.types import Generation
from tests.conftest import FAMILIES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("reward", "BrevityReward"), ("cue-sampler", "MyCues"), ("task", "MirrorTask"), ("backbone", "MyBackbone")]
)
def test_a_new_package_passes_its_own_tests(locus, tmp_path, kind, name):
    status, out, err = locus("plugins", "new", kind, name, "made")
    assert status == 0, err
    assert "pip install -e" in out
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "made" / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=tmp_path / "made", env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    project = (tmp_path / "made" / "pyproject.toml").read_text()
    assert f'{name} = "locus_' in project
    status, _, err = locus("plugins", "new", kind, name, "made")
    assert (status, "not an empty folder" in err) == (2, True)


@pytest.mark.parametrize(("name", "message"), [("brevity", "no class name"), ("IoUReward", "plugin of locus-lightning already")])
def test_names_that_cannot_be_are_refused(locus, name, message):
    status, _, err = locus("plugins", "new", "reward", name)
    assert (status, message in err) == (2, True)


@pytest.mark.parametrize(
    ("kind", "toy"), [("mistral3", "mistral3"), ("qwen2_5_vl", "qwen2_5_vl"), ("gemma3", "gemma3"), ("qwen3_5", "qwen3_5_moe")]
)
def test_our_own_families_pass_what_authors_are_given(kind, toy):
    check_backbone(FAMILIES[kind](f"toy:{toy}", dtype="float64"))


def test_a_backbone_that_pays_no_heed_to_positions_is_found():
    kind = FAMILIES["llava"]
    wrong = type("Wrong", (kind,), {"positions": lambda self, ids_P, inputs: kind.positions(self, ids_P, inputs) * 0})
    with pytest.raises(AssertionError, match="own pass over a prompt"):
        check_backbone(wrong("toy:llava", dtype="float64"))


def test_an_engine_that_lies_is_found(make_backbone):
    class Lies(HFRollout):
        def generate(self, *args):
            return [[Generation(g.ids_T, g.logps_T + 0.5, g.truncated) for g in row] for row in super().generate(*args)]

    backbone = make_backbone("llava", dtype="float64")
    check_rollout(HFRollout(), backbone)
    with pytest.raises(AssertionError, match="from the trainer's"):
        check_rollout(Lies(), backbone)


@pytest.mark.parametrize(
    "settings", [{}, {"surrogate": "sapo"}, {"surrogate": "gmpo"}, {"surrogate": "cispo"}, {"reduction": "sequence_sum"}]
)
def test_our_own_objectives_pass(settings):
    check_objective(GRPO(**settings))


def test_an_objective_of_the_wrong_sign_is_found():
    class Backwards(GRPO):
        def __call__(self, *args, **kwargs):
            loss, figures = super().__call__(*args, **kwargs)
            return -loss, figures

    with pytest.raises(AssertionError, match="better answers"):
        check_objective(Backwards(kl_coef=0.0))
    assert issubclass(Backwards, Objective)
