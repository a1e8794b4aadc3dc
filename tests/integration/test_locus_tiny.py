"""The model that comes with the package: its card says what its weights do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from locus_lightning.backbones.checkpoint import SHIPPED
from tests.integration.conftest import ROOT

FOLDER = SHIPPED["locus-tiny"]
CARD = json.loads((FOLDER / "card.json").read_text())


def test_validate_gives_the_cards_figures(locus):
    status, out, err = locus("validate", "--config", ROOT / "configs" / "tiny.yaml", "--trainer.enable_progress_bar=false")
    assert status == 0, err
    figures = json.loads(Path(out.split("figures: ")[1].strip()).read_text())
    for name, said in CARD["scores"]["cues"].items():
        assert figures[name] == pytest.approx(said, abs=0.01), name


def test_smallstar_gives_the_cards_figures(locus, tmp_path):
    status, _, err = locus("eval", "locus-tiny", "--suite", "smallstar", "--batch-size", "50", "--out", "out")
    assert status == 0, err
    (result,) = tmp_path.rglob("result.json")
    for name, said in CARD["scores"]["smallstar"].items():
        assert json.loads(result.read_text())["figures"][name] == pytest.approx(said, abs=0.02), name


def test_the_card_tells_its_figures():
    text = (FOLDER / "README.md").read_text()
    scores = [*CARD["scores"]["cues"].values(), *CARD["scores"]["smallstar"].values()]
    assert all(f"{CARD['scores'][suite][name]:.3f}" in text for suite, name in (("cues", "iou"), ("smallstar", "score")))
    assert all(0 <= value <= 1 for value in scores)
    assert (FOLDER / "model.safetensors").stat().st_size < 10_000_000
