from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from locus_lightning.boxes import (
    BoxFrame,
    box_area,
    clip_box,
    constant_boxes,
    crop_window,
    giou,
    image_box,
    iou,
    is_valid_box,
    raster,
    size_bin,
)
from locus_lightning.tasks.parsing import parse_boxes, write_response
from locus_lightning.types import CueWindow

sides = st.integers(1, 4000)


@st.composite
def image_and_box(draw):
    w, h = draw(st.integers(32, 4000)), draw(st.integers(32, 4000))
    x1, y1 = draw(st.integers(0, w - 16)), draw(st.integers(0, h - 16))
    return (w, h), (float(x1), float(y1), float(draw(st.integers(x1 + 16, w))), float(draw(st.integers(y1 + 16, h))))


def frames(size):
    w, h = size
    return [
        BoxFrame.stretched(size, (28 * max(1, w // 28), 28 * max(1, h // 28))),
        BoxFrame.stretched(size, (1000, 1000)),
        BoxFrame.stretched(size, (1.0, 1.0), decimals=3),
        BoxFrame.square_padded(size, 1.0, decimals=3),
        BoxFrame.square_padded(size, 336),
    ]


@given(image_and_box())
def test_original_to_text_and_back_stays_within_the_frames_own_rounding(case):
    size, box = case
    for frame in frames(size):
        boxes, _ = parse_boxes(write_response("r", frame.to_text(box)), frame, 1)
        assert boxes is not None
        back = boxes[0]
        rx, ry = frame.resolution
        for got, true, step in zip(back, box, (rx, ry, rx, ry), strict=True):
            assert abs(got - true) <= 1.01 * step, (frame, box, back)


@given(image_and_box())
def test_model_frame_is_exactly_inverted(case):
    size, box = case
    for frame in frames(size):
        assert frame.to_original(frame.to_model(box)) == pytest.approx(box, abs=1e-6)


def test_ignoring_the_frame_ruins_a_small_box():
    size, box = (640, 480), (600.0, 440.0, 616.0, 456.0)
    resized = BoxFrame.stretched(size, (644, 476))
    assert iou(resized.to_original(resized.to_model(box)), box) == pytest.approx(1.0)
    assert iou(resized.to_model(box), box) < 0.5


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 0, 10), (0, 0, 10, 10), 0.0),
        ((5, 5, 1, 1), (0, 0, 10, 10), 0.0),
    ],
)
def test_iou(a, b, expected):
    assert iou(a, b) == pytest.approx(expected)


def test_giou_tells_a_near_miss_from_a_far_one():
    assert giou((0, 0, 10, 10), (12, 0, 22, 10)) > giou((0, 0, 10, 10), (90, 0, 100, 10))
    assert giou((0, 0, 0, 0), (0, 0, 1, 1)) == -1.0


def test_clip_and_validity():
    assert clip_box((-5, 2, 200, 30), (100, 20)) == (0, 2, 100, 20)
    assert box_area((3, 3, 1, 5)) == 0
    assert not is_valid_box((0, 0, math.inf, 1))
    assert not is_valid_box((0, 0, math.nan, 1))
    assert not is_valid_box((2, 0, 2, 1))


@pytest.mark.parametrize(("side", "name"), [(9, "tiny"), (10, "small"), (22, "small"), (23, "medium"), (32, "large"), (100, "large")])
def test_size_bins_by_share_of_the_image(side, name):
    assert size_bin((0, 0, side, side), (100, 100)) == name


def test_trivial_boxes_lie_in_the_image():
    for box in constant_boxes((200, 100)).values():
        assert is_valid_box(box)
        assert clip_box(box, (200, 100)) == box


@pytest.mark.parametrize("box", [(1, 1, 1, 2), (1, 1, 2, 1), (2, 1, 1, 2), (1, 2, 2, 1), (0, 0, float("inf"), 1), (0, 0, 1)])
def test_a_box_without_area_is_none(box):
    assert not is_valid_box(box)


def test_a_square_padded_frame_by_hand():
    """A photo of 40 x 20 lies in the middle of a square of 40: 10 pixels of padding above and below, none beside."""
    frame = BoxFrame.square_padded((40, 20), 400.0)
    assert frame.to_model((4.0, 5.0, 8.0, 10.0)) == (40.0, 150.0, 80.0, 200.0)
    assert frame.to_original((40.0, 150.0, 80.0, 200.0)) == (4.0, 5.0, 8.0, 10.0)
    assert frame.resolution == (0.1, 0.1)
    tall = BoxFrame.padded_fractions((20, 40), 2)
    assert tall.to_text((0.0, 0.0, 20.0, 40.0)) == "[0.25, 0.00, 0.75, 1.00]"
    odd = BoxFrame.square_padded((41, 20), 41.0)
    assert odd.to_model((0.0, 0.0, 1.0, 1.0)) == (0.0, 10.0, 1.0, 11.0), "an odd pixel of padding lies below, as PIL pastes"


def test_a_side_that_rounds_to_nothing_is_the_step_around_its_middle():
    frame = BoxFrame.stretched((1000, 1000), (100.0, 100.0))
    assert frame.to_text((401.0, 403.0, 404.0, 900.0)) == "[40, 40, 41, 90]"
    assert frame.to_text((999.0, 0.0, 1000.0, 1000.0)) == "[99, 0, 100, 100]"
    fine = BoxFrame.stretched((1000, 1000), (1.0, 1.0), decimals=2)
    assert fine.to_text((401.0, 403.0, 404.0, 900.0)) == "[0.40, 0.40, 0.41, 0.90]"
    assert fine.to_text((699.0, 0.0, 699.5, 10.0)) == "[0.69, 0.00, 0.70, 0.01]"


def test_the_box_of_an_image():
    assert image_box((7, 5)) == (0.0, 0.0, 7.0, 5.0)


def test_frames_and_boxes_do_not_change_once_made():
    with pytest.raises(AttributeError):
        BoxFrame.thousandths((10, 10)).decimals = 3


def test_a_raster_by_hand():
    cells = [[0, 0, 10, 5], [10, 0, 20, 5], [20, 0, 30, 5], [0, 5, 10, 10], [10, 5, 20, 10], [20, 5, 30, 10]]
    assert raster(2, 3, (0.0, 0.0, 30.0, 10.0)).tolist() == cells


def test_constant_boxes_by_hand():
    found = constant_boxes((200, 100))
    assert found["whole image"] == (0.0, 0.0, 200.0, 100.0)
    assert found["centre 0.5"] == (50.0, 25.0, 150.0, 75.0)
    assert found["centre 0.1"] == pytest.approx((90.0, 45.0, 110.0, 55.0))


def test_an_end_is_moved_back_by_the_extent_of_its_own_side():
    """The frame is wider than high: what is beyond its height is not beyond its width."""
    frame = BoxFrame.stretched((100, 50), (100.0, 50.0))
    assert frame.to_text((80.2, 49.7, 80.3, 50.0)) == "[80, 49, 81, 50]"


def test_a_window_is_cut_and_resized_to_at_least_a_pixel():
    image = Image.new("RGB", (40, 30), "red")
    assert crop_window(image, CueWindow((0, 0, 10, 20), "small", scale=0.5)).size == (5, 10)
    assert crop_window(image, CueWindow((0, 0, 10, 1), "small", scale=0.1)).size == (1, 1)
