"""Attention over the image: what eager attention would say, on cells that lie where the model looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from locus_lightning.analysis import interventions as behaviour
from locus_lightning.analysis.attention_maps import AttentionMap, attention_map
from locus_lightning.analysis.interventions import Asked
from locus_lightning.backbones.shared_prefix import attention
from locus_lightning.boxes import keep_only, raster
from locus_lightning.types import Question
from tests.conftest import contents

SIZES = [(128, 96), (60, 150), (97, 97)]


def asked(width, height, box=None):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    if box:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    return Question("q", Image.fromarray(pixels), "What is this?", "a box")


@pytest.mark.parametrize("after", ["", "<think></think><answer>"])
def test_the_last_querys_attention_is_that_of_eager_attention(make_backbone, family, after):
    backbone = make_backbone(family)
    noise = np.random.default_rng(0).integers(0, 255, (70, 110, 3), dtype=np.uint8)
    question = Question("q", Image.fromarray(noise), "What is this?", "noise")
    found = attention_map(backbone, question, after)
    inputs = backbone._process([backbone.prompt_text(contents(backbone, [question])[0]) + after], [backbone.prepare_image(question.image)])
    backbone.hf.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = backbone.hf(**inputs, output_attentions=True).attentions
    tokens = backbone.image_tokens(backbone.encode_pixels(contents(backbone, [question]))[0])
    expected = torch.stack([layer[0, :, -1].mean(0)[tokens] for layer in theirs])
    assert found.weights_LN.shape == expected.shape
    assert torch.allclose(found.weights_LN, expected, atol=1e-5)
    assert (found.weights_LN.sum(-1) < 1).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_token_stands_for_the_part_of_the_image_that_changes_it(make_backbone, family, size):
    """What a white spot changes most, among the tower's features, are tokens whose cells it lies in."""
    backbone = make_backbone(family)
    w, h = size
    for corner in ((0.1, 0.1), (0.7, 0.15), (0.2, 0.75), (0.75, 0.7)):
        x, y = int(corner[0] * w), int(corner[1] * h)
        box = (x, y, x + max(9, w // 8), y + max(9, h // 8))
        plain, spotted = backbone.encode_pixels(contents(backbone, [asked(w, h), asked(w, h, box)]))
        cells = backbone.image_cells(plain, size)
        with torch.no_grad():
            before, after = (torch.cat(backbone.vision_features([p])[0]) for p in (plain, spotted))
        assert len(cells) == len(before) == len(backbone.image_tokens(plain))
        change = (after - before).norm(dim=-1)
        change[cells[:, 2] <= cells[:, 0]] = 0  # newline tokens
        looking = AttentionMap(change[None], cells, size)
        assert looking.peak_in_box([tuple(map(float, box))]), (box, cells[change.argmax()])


def test_attention_in_box_counts_cells_that_touch():
    cells = raster(2, 2, (0.0, 0.0, 20.0, 20.0))
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.2], [0.4, 0.0, 0.0, 0.1]])
    looking = AttentionMap(weights, cells, (20, 20))
    mean, layers = looking.in_box([(1.0, 1.0, 9.0, 9.0)])
    assert layers == pytest.approx([0.1 / 0.8, 0.4 / 0.5])
    assert mean == pytest.approx(0.5 / 1.3), "of the averaged map, not the mean of the layers'"
    assert looking.in_box([(1.0, 1.0, 9.0, 9.0), (0.0, 10.0, 5.0, 20.0)])[0] == pytest.approx(0.8 / 1.3)
    assert looking.inside([(10.0, 0.0, 20.0, 10.0)]).tolist() == [False, True, False, False], "an edge in common is no touch"
    assert looking.peak_in_box([(0.0, 0.0, 5.0, 5.0)])
    assert not looking.peak_in_box([(15.0, 15.0, 20.0, 20.0)])
    heat = looking.heatmap()
    assert heat.shape == (2, 2)
    assert heat[0, 0] == pytest.approx(0.5 / 1.3)
    assert heat.sum() == pytest.approx(1)


def test_watching_costs_memory_by_the_token_not_by_its_square(make_backbone):
    backbone = make_backbone("llava")
    layers = backbone.attention_layers()
    with attention.watch(layers) as seen:
        attention_map(backbone, asked(60, 60))
    kept = sum(value.numel() for value in seen.found.values())
    length = len(backbone.encode_pixels(contents(backbone, [asked(60, 60)]))[0].ids_P)
    assert kept == len(layers) * length
    assert not attention._watching
    assert 28 * 4500 * 4 < 100e6, "4,500 tokens of a 28-layer model, float32"


def test_suppression_keeps_the_targets_the_canvas_and_nothing_else():
    noise = np.random.default_rng(0).integers(1, 255, (40, 60, 3), dtype=np.uint8)
    black = np.asarray(keep_only(Image.fromarray(noise), [(5.0, 6.0, 20.0, 30.0), (50.0, 30.0, 70.0, 50.0)]))
    kept = np.zeros((40, 60), dtype=bool)
    kept[6:30, 5:20] = kept[30:40, 50:60] = True
    assert (black[kept] == noise[kept]).all()
    assert (black[~kept] == 0).all()


def test_context_and_grounding_mark_what_was_said(make_backbone, monkeypatch):
    backbone = make_backbone("qwen2_vl")
    image, box = Image.new("RGB", (100, 50), (90, 90, 90)), (10.0, 10.0, 40.0, 30.0)
    asked = [
        Asked(Question(str(i), image, "What?", "A"), (box,), lambda text: text == "A", (Question("", image, "Find", ""),)) for i in range(3)
    ]
    frame = backbone.frame(image.size)
    said = {"questions": ["A", "B", "A"], "targets": [frame.to_text(box), "nowhere", "<answer>[0, 0, 1000, 1000]</answer>"],
            "full image": ["A", "B", "B"], "targets alone": ["A", "A", "B"]}  # fmt: skip
    monkeypatch.setattr(behaviour, "say", lambda backbone, engine, questions, about: said[about])
    assert behaviour.context(backbone, None, asked) == [(True, True), (False, True), (False, False)]
    rows = behaviour.grounding(backbone, None, asked)
    assert [row.right for row in rows] == [True, False, True]
    assert rows[0].iou == pytest.approx(1.0)
    assert rows[1].iou == 0
    assert rows[2].iou == pytest.approx(600 / 5000)
    bins = behaviour.by_iou(rows)
    assert [row["questions"] for row in bins] == [1, 1, 0, 0, 1]
    assert [row["accuracy"] for row in bins] == [0.0, 1.0, None, None, 1.0]
