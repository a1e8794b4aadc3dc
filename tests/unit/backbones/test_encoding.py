"""Words and images of a message, as a model gets them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from locus_lightning.errors import ConfigError
from locus_lightning.tasks.cue_search import CueSearch
from tests.conftest import FAMILIES, contents, make_sample, prompt_length, target


def test_each_image_stands_behind_its_label(make_backbone, family):
    """Also where the family's chat template moves images to the front."""
    backbone = make_backbone(family)
    text = backbone.prompt_text(contents(backbone, [make_sample()])[0])
    mark = backbone.processor.image_token
    first, second = text.index(mark), text.rindex(mark)
    assert text.count(mark) == 2
    assert text.index("Image 1") < first < text.index("Image 2") < second < text.index("was cut out")


@pytest.mark.parametrize("which", ["image", "cue"])
def test_changing_either_image_changes_the_logps(make_backbone, family, which):
    backbone = make_backbone(family, dtype="float64")
    sample, other = make_sample(seed=0), make_sample(seed=1)
    changed = replace(sample, image=other.image) if which == "image" else replace(sample, cue=other.cue)
    answer = [[backbone.tokenize_answer("[1, 2, 3, 4]")]]
    before, _ = backbone.logps(backbone.encode(contents(backbone, [sample])), answer)
    after, _ = backbone.logps(backbone.encode(contents(backbone, [changed])), answer)
    assert (before - after).abs().max() > 1e-6


def test_image_tokens_equal_features(make_backbone, family, samples):
    backbone = make_backbone(family)
    for prompt in backbone.encode(contents(backbone, samples)):
        placeholders = sum(int((prompt.ids_P == i).sum()) for i in backbone.banned_ids)
        assert placeholders == sum(len(image) for image in prompt.features)
        assert len(prompt.features) >= (1 if family in ("idefics3", "smolvlm") else 2)


def test_a_right_answer_is_read_back_as_the_box(make_backbone, family):
    backbone = make_backbone(family)
    for size, box in [((640, 480), (200, 120, 216, 140)), ((300, 900), (20, 500, 90, 640)), ((57, 33), (3, 4, 30, 29))]:
        sample = make_sample(*size, box)
        frame = backbone.frame(sample.image.size)
        completion = CueSearch().complete(target(backbone, sample), sample, frame)
        assert completion.well_formed
        back = completion.box
        steps = (*frame.resolution, *frame.resolution)
        assert all(abs(a - b) <= 1.01 * s for a, b, s in zip(back, sample.box, steps, strict=True))
        ids = backbone.tokenize_answer(target(backbone, sample))
        assert ids[-1].item() in backbone.eos_ids
        assert backbone.decode(ids) == target(backbone, sample)


def test_qwen_frame_is_that_of_the_processors_own_resize(make_backbone):
    backbone = make_backbone("qwen2_5_vl")
    for size in [(100, 80), (640, 480), (33, 57), (500, 40)]:
        sample = make_sample(*size, (2, 2, 20, 20))
        (prompt,) = backbone.encode(contents(backbone, [sample]))
        _, rows, columns = prompt.vision["image_grid_thw"][0].tolist()
        assert backbone.frame(sample.image.size).extent == (columns * 14, rows * 14)


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [("llava_next", "max_tiles", 2), ("internvl", "max_tiles", 1), ("smolvlm", "longest_edge", 56), ("qwen3_vl", "max_pixels", 64 * 64)],
)
def test_a_budget_saves_tokens(make_backbone, family, setting, value):
    sample = make_sample(300, 220, (5, 5, 200, 180))
    assert prompt_length(make_backbone(family, **{setting: value}), sample) < prompt_length(make_backbone(family), sample)


def test_budgets_that_cannot_be_are_refused(make_backbone):
    with pytest.raises(ConfigError, match=r"max_tiles is 0"):
        FAMILIES["internvl"]("toy:internvl", max_tiles=0)
    with pytest.raises(ConfigError, match=r"longest_edge is 57; tiles of this checkpoint are 56 px"):
        make_backbone("smolvlm", longest_edge=57)
    with pytest.raises(ConfigError, match=r"max_tiles is 1; .* smallest tile grid has 2"):
        make_backbone("llava_next", max_tiles=1)
    with pytest.raises(ConfigError, match="min_pixels .* is above"):
        make_backbone("qwen2_vl", max_pixels=28 * 28)


def test_an_image_is_never_cut_off(make_backbone):
    backbone = make_backbone("qwen2_5_vl")
    backbone.hf.config.get_text_config().max_position_embeddings = 60
    with pytest.raises(ConfigError, match=r"a prompt has \d+ tokens and toy:qwen2_5_vl reads 60.*max_pixels"):
        backbone.encode(contents(backbone, [make_sample()]))
    from locus_lightning.errors import DataError

    with pytest.raises(DataError, match="over 200 times as long as wide"):
        backbone.encode(contents(backbone, [make_sample(4020, 20, (0, 0, 20, 20))]))
