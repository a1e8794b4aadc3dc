"""Any model whose frame the user states."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from locus_lightning.backbones.generic import GenericBackbone
from locus_lightning.errors import CheckpointError, ConfigError
from locus_lightning.types import Question
from tests.conftest import FAMILIES, contents, make_sample


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("qwen3_vl", "qwen3_vl_moe", "gemma3")])
def test_the_generic_backbone_gives_what_the_familys_own_gives(make_backbone, family):
    torch.manual_seed(0)
    generic = GenericBackbone(f"toy:{family}", frame="thousandths", dtype="float64")
    generic.images_in_text = FAMILIES[family].images_in_text
    generic.check()
    generic.load()
    own, square = make_backbone(family, dtype="float64"), make_sample(64, 64, (5, 5, 40, 40))  # square: LLaVA's pads others
    asked = Question("q", square.image, "What is this?", "a circle")
    answer = [[own.tokenize_answer("[1, 2, 3, 4]")]]
    one, other = (b.logps(b.encode(contents(b, [asked])), answer)[0] for b in (generic, own))
    assert torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe", "gemma3"])
def test_the_generic_backbone_refuses_what_it_would_run_wrongly(family):
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="needs a backbone plugin of its own"):
        GenericBackbone(f"toy:{family}", frame="thousandths").load()


@pytest.mark.parametrize(("frame", "extent"), [("thousandths", 1000), ("fractions", 1), ("padded_fractions", 1), ("original_pixels", None)])
def test_the_generic_frame_is_the_stated_one(frame, extent):
    sample = make_sample(90, 30, (5, 5, 25, 25))
    found = GenericBackbone("toy:llava", frame=frame).frame(sample.image.size)
    assert found.extent == ((extent, extent) if extent else (90, 30))
    assert (found.offset != (0, 0)) is (frame == "padded_fractions")


def test_the_generic_backbone_compares_packed_rows_with_plain_ones(monkeypatch):
    from locus_lightning.backbones import hf

    original = hf.lay_out

    def shifted(prompts, completions, *, share_prefix):
        rows = original(prompts, completions, share_prefix=share_prefix)
        return replace(rows, source_N=rows.source_N.roll(1)) if share_prefix else rows

    monkeypatch.setattr(hf, "lay_out", shifted)
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="forward pass differs"):
        GenericBackbone("toy:qwen2_vl", frame="thousandths").load()


def test_a_frame_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="frame is 'pixels'; give one of thousandths"):
        GenericBackbone("toy:llava", frame="pixels")
