"""The example tasks: installed as packages of their own, they touch nothing here."""

from __future__ import annotations

import numpy as np
import pytest

from locus_lightning import plugins
from locus_lightning.boxes import BoxFrame
from locus_lightning.errors import ConfigError
from locus_lightning.testing import check_task
from tests.conftest import make_sample

FRAME = BoxFrame.thousandths((100, 80))


@pytest.mark.parametrize("name", ["JigsawTask", "RotationTask", "CueSearch", "MultiCue"])
def test_it_keeps_the_contract(name):
    check_task(plugins.load("tasks", name)())


def test_a_jigsaw_put_in_order_is_the_picture():
    task = plugins.load("tasks", "JigsawTask")(2, 3)
    sample = task.sample(make_sample(90, 80), np.random.default_rng(3))
    assert sorted(sample.order) == [1, 2, 3, 4, 5, 6]
    for place, number in enumerate(sample.order):
        row, column = divmod(place, 3)
        expected = sample.image.crop((column * 30, row * 40, column * 30 + 30, row * 40 + 40))
        assert np.array_equal(np.asarray(sample.tiles[number - 1]), np.asarray(expected))
    swapped = (sample.order[1], sample.order[0], *sample.order[2:])
    assert task.score_answer(swapped, sample) == pytest.approx(4 / 6)
    assert task.read_answer("1, 1, 2, 3, 4, 5", sample, FRAME) is None
    with pytest.raises(ConfigError, match="2 to 9 tiles"):
        plugins.load("tasks", "JigsawTask")(4, 4)


def test_a_rotated_picture_is_turned_back_by_its_answer():
    task = plugins.load("tasks", "RotationTask")()
    seen = set()
    for seed in range(20):
        source = make_sample()
        sample = task.sample(source, np.random.default_rng(seed))
        back = sample.image.rotate(sample.degrees, expand=True)  # PIL turns counter-clockwise
        assert np.array_equal(np.asarray(back), np.asarray(source.image))
        seen.add(sample.degrees)
    assert seen == {0, 90, 180, 270}
    assert task.read_answer(" 90 degrees ", sample, FRAME) == 90
    assert task.read_answer("45", sample, FRAME) is None
    assert task.read_answer("90 or 180", sample, FRAME) is None
