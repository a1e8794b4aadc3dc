from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from locus_lightning.boxes import size_bin
from locus_lightning.cue_samplers.base import CueSampler, Picture, checked_windows, crop_cue
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.cue_samplers.random_crop import RandomCropCues
from locus_lightning.data.coco.annotations import CocoImage
from locus_lightning.data.coco.index import CueEntry, windows_of
from locus_lightning.data.corpus.corpus import SCHEMA, from_table, to_table
from locus_lightning.data.source import CueKey
from locus_lightning.data.synthetic.scenes import SceneCues
from locus_lightning.errors import ConfigError
from locus_lightning.testing import check_cue_sampler
from locus_lightning.types import CueWindow, SceneObject
from tests.conftest import make_sample

ALL = {"tiny": 1.0, "small": 1.0, "medium": 1.0, "large": 1.0}


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 900), st.integers(40, 900), st.integers(0, 2**31))
def test_windows_are_integer_inside_and_large_enough(width, height, seed):
    generator = rng(seed)
    objects = []
    for i in range(6):
        x, y = generator.uniform(0, width - 5), generator.uniform(0, height - 5)
        objects.append(SceneObject((x, y, generator.uniform(x + 1, width), generator.uniform(y + 1, height)), "thing", i))
    for sampler in (ObjectCues(ALL), RandomCropCues(ALL), ObjectCues(ALL, scale_target="box")):
        for window in sampler.sample((width, height), objects, rng(seed)) or []:
            x1, y1, x2, y2 = window.box
            assert all(isinstance(v, int) for v in window.box)
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert min(x2 - x1, y2 - y1) >= 16
            assert window.size_bin == size_bin(window.box, (width, height))


def test_the_window_covers_the_object_and_the_padding_is_at_most_a_tenth():
    box = (300.0, 200.0, 330.0, 220.0)
    for seed in range(30):
        (window,) = ObjectCues(ALL).sample((640, 480), [SceneObject(box)], rng(seed))
        x1, _, x2, y2 = window.box
        assert x1 <= 300
        assert x2 >= 330
        assert x1 >= 300 - 3 - 1
        assert y2 <= 220 + 2 + 1
        assert 0.8 <= window.scale <= 2.0


def test_small_cues_get_neither_padding_nor_scaling():
    box = (100.0, 100.0, 200.0, 180.0)
    (window,) = ObjectCues(ALL).sample((640, 480), [SceneObject(box)], rng())
    assert window.box == (100, 100, 200, 180)
    assert window.scale == 1.0
    assert window.size_bin == "small"


def test_scale_target_box_resizes_the_window_instead():
    found = SceneObject((300.0, 200.0, 330.0, 220.0))
    widths = set()
    for seed in range(20):
        for window in ObjectCues(ALL, scale_target="box").sample((640, 480), [found], rng(seed)) or []:
            assert window.scale == 1.0
            widths.add(window.box[2] - window.box[0])
    assert max(widths) > 45


def test_objects_under_the_least_side_give_no_cue():
    assert ObjectCues(ALL).sample((640, 480), [SceneObject((10.0, 10.0, 18.0, 60.0))], rng()) is None


def test_choose_follows_the_mix():
    sampler = ObjectCues({"tiny": 0.7, "small": 0.3})
    objects = [SceneObject((10.0, 10.0, 40.0, 40.0)), SceneObject((100.0, 100.0, 190.0, 180.0))]
    generator = rng()
    bins = [sampler.choose(sampler.sample((640, 480), objects, generator), generator).size_bin for _ in range(600)]
    assert 0.63 < bins.count("tiny") / len(bins) < 0.77


def test_random_crops_ignore_objects_and_are_seeded():
    sampler = RandomCropCues({"small": 1.0}, per_image=5)
    first, again = (sampler.sample((640, 480), [], rng(4)) for _ in range(2))
    assert first == again
    assert {w.size_bin for w in first} == {"small"}


def test_cropping_scales_the_cue_only():
    sample = make_sample(100, 80, (10, 12, 44, 40))
    window = ObjectCues(ALL).sample((2000, 2000), [SceneObject((10.0, 12.0, 44.0, 40.0))], rng(2))[0]
    cue = crop_cue(sample.image, window)
    x1, y1, x2, y2 = window.box
    assert cue.image.size == (round((x2 - x1) * window.scale), round((y2 - y1) * window.scale))


@pytest.mark.parametrize("mix", [{"huge": 1.0}, {"tiny": 0.0}, {"tiny": -1.0, "small": 2.0}])
def test_a_mix_that_cannot_work_is_refused(mix):
    with pytest.raises(ConfigError, match="mix"):
        ObjectCues(mix)


def test_a_window_holds_its_whole_box_and_no_sliver_is_taken():
    """Rounded outwards on every side: the left and upper edge down, the right and lower edge up."""
    sampler = ObjectCues(ALL, padding=(0.0, 0.0))
    (window,) = sampler.sample((640, 480), [SceneObject((100.6, 50.4, 130.2, 80.7))], rng())
    assert window.box == (100, 50, 131, 81)
    assert sampler.integer_window((-3.5, -0.2, 30.0, 30.0), (640, 480)) == (0, 0, 30, 30)
    assert sampler.integer_window((0, 0, 4000, 16), (8000, 100)) is None
    assert sampler.integer_window((0, 0, 3200, 16), (8000, 100)) == (0, 0, 3200, 16)


def test_a_window_of_one_pixel_may_be_asked_for():
    assert ObjectCues(min_side=1).min_side == 1
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        ObjectCues(min_side=0)
    assert ObjectCues.about_objects


def test_a_bin_with_no_share_is_left_out_of_the_mix():
    assert ObjectCues({"tiny": 3, "small": 1, "large": 0}).mix == {"tiny": 0.75, "small": 0.25}


class Brightest(CueSampler):
    """The brighter half of a picture; tells how bright."""

    def look(self, picture, objects, rng):
        width, height = picture.size
        halves = [(0, 0, width // 2, height), (width // 2, 0, width, height)]
        means = [float(np.asarray(picture.pixels.crop(half)).mean()) for half in halves]
        best = halves[int(np.argmax(means))]
        return [CueWindow(best, size_bin(best, picture.size), facts={"mean": round(max(means), 3)})]


def test_a_sampler_may_look_at_the_pixels():
    image = Image.new("RGB", (100, 60))
    image.paste("white", (50, 0, 100, 60))
    opened = []
    picture = Picture(image.size, "a", 7, lambda: opened.append(1) or image)
    assert picture.size == (100, 60)
    assert not opened, "the size costs nothing"
    (window,) = checked_windows(Brightest({"large": 1}), picture, [], rng())
    assert window.box == (50, 0, 100, 60)
    assert len(opened) == 1, "a picture is opened once"
    check_cue_sampler(Brightest({"large": 1}))
    sample = SceneCues(cue_sampler=Brightest({"large": 1})).dataset("train", 0)[CueKey(0, 0)]
    assert sample.cue.window.facts["mean"] > 0


def test_a_sampler_of_pixels_leaves_out_pictures_that_do_not_open(tmp_path):
    Image.new("RGB", (100, 60)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"none")
    images = [CocoImage(i, str(tmp_path / name), (100, 60), []) for i, name in enumerate(("good.png", "bad.png"))]
    left_out = Counter()
    found = windows_of(images, Brightest({"large": 1}), 8, 0, left_out)
    assert [entry.image_id for entry in found["large"]] == [0]
    assert left_out["pictures that cannot be used"] == 1


def test_facts_of_a_window_come_back_from_a_corpus(tmp_path):
    entries = [CueEntry(str(tmp_path / f"{i}.png"), (100, 60), i, CueWindow((0, 0, 50, 60), "large", facts=facts)) for i, facts in
               enumerate(({"mean": 3.5, "why": "bright"}, {}))]  # fmt: skip
    assert from_table(to_table(entries, tmp_path), tmp_path) == entries
    plain = to_table(entries[1:], tmp_path)
    assert plain.schema == SCHEMA, "a corpus without facts is what it was"


def test_a_sampler_that_samples_nothing_says_so():
    class Empty(CueSampler):
        pass

    with pytest.raises(ConfigError, match="Empty overrides neither sample"):
        checked_windows(Empty(), Picture((100, 100), "a"), [], rng())
