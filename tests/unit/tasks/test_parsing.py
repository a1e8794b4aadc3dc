from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locus_lightning.boxes import BoxFrame, is_valid_box
from locus_lightning.tasks.parsing import boxes_in, extract_answer, opened_by, parse_boxes, without_opened, write_response

PIXELS = BoxFrame.stretched((1000, 1000), (1000, 1000))


def box_of(text):
    boxes, _ = parse_boxes(text, PIXELS, 1)
    return boxes[0] if boxes else None


GOOD = "<think>it is on the left</think>\n<answer>[1, 2, 30, 40]</answer>"


def test_a_right_answer_reads_back():
    assert parse_boxes(write_response("because", "[1, 2, 30, 40]"), PIXELS, 1) == (((1, 2, 30, 40),), True)


@pytest.mark.parametrize(
    ("text", "box", "well_formed"),
    [
        (GOOD, (1, 2, 30, 40), True),
        ("<think></think><answer> [0.12, 0.2, 0.9, 1.0] </answer>", (0.12, 0.2, 0.9, 1.0), True),
        ('<think>a</think><answer>{"bbox_2d": [1, 2, 3, 4]}</answer>', (1, 2, 3, 4), True),
        ("<think>a</think><answer>(1,2),(3,4)</answer>", (1, 2, 3, 4), True),
        ("<think>a</think><answer><|box_start|>(1, 2), (3, 4)<|box_end|></answer>", (1, 2, 3, 4), True),
        ("<think>a</think><answer><box>[[1, 2, 3, 4]]</box></answer>", (1, 2, 3, 4), True),
        ('<think>a</think><answer>```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cue"}]\n```</answer>', (1, 2, 3, 4), True),
        ("<think>a</think><answer>(1,2),(3,4),(5,6),(7,8)</answer>", None, False),
        ("<think>a</think><answer>(1,2),(3,4]</answer>", (1, 2, 3, 4), True),
        ("<answer>[1, 2, 3, 4]</answer>", (1, 2, 3, 4), False),
        ("sure! " + GOOD, (1, 2, 30, 40), False),
        (GOOD + " done", (1, 2, 30, 40), False),
        ("<think>a</think><answer>[1e1, 2, 3e1, 40]</answer>", (10, 2, 30, 40), True),
        ("<think>a</think><answer>[-3, 2, 30, 40]</answer>", (-3, 2, 30, 40), True),
        # no box: hedging, swapped corners, not finite, truncated, prose, nothing
        ("<think>a</think><answer>[1, 2, 3, 4] or [5, 6, 7, 8]</answer>", None, False),
        ("<think>a</think><answer>[1, 2, 3, 4]</answer><answer>[5, 6, 7, 8]</answer>", None, False),
        ("<think>a</think><answer>[30, 2, 1, 40]</answer>", None, True),
        ("<think>a</think><answer>[1e999, 2, 3, 4]</answer>", None, True),
        ("<think>a</think><answer>[nan, 2, 3, 4]</answer>", None, False),
        ("<think>a</think><answer>[1, 2, 3", None, False),
        ("<think>a</think><answer>[1, 2, 3]</answer>", None, False),
        ("<think>[1, 2, 3, 4]</think><answer></answer>", None, False),
        ("[1, 2, 3, 4]", None, False),
        ("", None, False),
    ],
)
def test_reading(text, box, well_formed):
    assert box_of(text) == box
    assert parse_boxes(text, PIXELS, 1)[1] is well_formed


NUMBERS = st.one_of(
    st.integers(-50, 5000).map(str),
    st.floats(0, 1).map(lambda v: f"{v:.3f}"),
    st.sampled_from(["1e3", "2.5E-2", "1e999", "nan", "inf", "-0", "9" * 400, "１２", "٣", ".5", "7.", "0x10", "½", "", "x1"]),
)
SHAPES = st.sampled_from(
    [
        "[{}, {}, {}, {}]", "({},{}),({},{})", '{{"bbox_2d": [{}, {}, {}, {}]}}', "<box>[[{}, {}, {}, {}]]</box>", "[{} {} {} {}]",
        "<|box_start|>({},{}),({},{})<|box_end|>", "[[{}, {}], [{}, {}]]", "[{}, {}, {}, {}", "x1={}, y1={}, x2={}, y2={}", "[{}, {}, {}, {}, 5]",
    ]
)  # fmt: skip
PROSE = st.sampled_from(["", " ", "The crop is at ", "\n", "```json\n", "**", "<think>", "</answer>", "I see 3 [things]. ", "\x00", "≈"])


@st.composite
def what_models_write(draw):
    """Boxes in every form, swapped, several, cut off, with prose around, with and without the structure."""
    boxes = [draw(SHAPES).format(*(draw(NUMBERS) for _ in range(4))) for _ in range(draw(st.integers(0, 3)))]
    answer = draw(PROSE) + draw(PROSE).join(boxes) + draw(PROSE)
    text = draw(st.sampled_from(["<think>{}</think><answer>{}</answer>", "{}<answer>{}</answer>", "{} {}", "<answer>{}<think>{}"]))
    text = text.replace("{}", draw(PROSE), 1).replace("{}", answer, 1)
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


@given(st.text() | st.text("<>/thinkanswer[](),.0123456789e+- \n", max_size=80).map(lambda s: f"<think>{s}</think><answer>{s}</answer>"))
def test_noise_never_raises(text):
    assert box_of(text) is None or box_of(text)[0] < box_of(text)[2]


@settings(max_examples=1000)
@given(what_models_write())
def test_what_models_write_never_raises_and_a_box_is_a_box(text):
    for box in [box_of(text), *boxes_in(text)]:
        assert box is None or is_valid_box(box)
    assert box_of(text) is None or len(boxes_in(text)) >= 1


@pytest.mark.parametrize(
    "shape", ["[{}, {}, {}, {}]", "({},{}),({},{})", '{{"bbox_2d": [{}, {}, {}, {}]}}', "<box>[[{}, {}, {}, {}]]</box>"]
)
@given(st.tuples(*[st.integers(0, 1000)] * 4))
def test_every_native_form_reads_back(shape, box):
    x1, y1, x2, y2 = box
    assert box_of(write_response("r", shape.format(*box))) == (box if x1 < x2 and y1 < y2 else None)


def test_full_width_digits_are_no_trap():
    assert box_of("<think>a</think><answer>[１, ２, ３, ４]</answer>") in (None, (1, 2, 3, 4))


def test_a_box_that_overflows_in_original_pixels_is_no_box():
    small = BoxFrame.stretched((10_000, 10_000), (1.0, 1.0), decimals=3)
    assert parse_boxes("<think></think><answer>[1e308, 0, 1.7e308, 9e307]</answer>", small, 1) == (None, True)


def test_several_boxes_are_read_where_several_are_asked_for():
    text = "<think></think><answer>[1, 2, 3, 4], [5, 6, 7, 8]</answer>"
    assert parse_boxes(text, PIXELS, 2) == (((1, 2, 3, 4), (5, 6, 7, 8)), True)
    assert parse_boxes(text, PIXELS, 3) == (None, False)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("B", "B"),
        ("<think>A or C</think><answer>B</answer>", "B"),
        ("<think>A or C</think>B", "B"),
        ("A or C, so <answer>A</answer>?</think><answer>B", "B"),
        ("the letter is A</think>\n\nB", "B"),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("<think>A, still thinking", ""),
        ("", ""),
    ],
)
def test_the_answer_part_of_a_plain_response(text, answer):
    assert extract_answer(text) == answer


def test_what_a_template_opened_is_not_written_again():
    assert opened_by("user: hi\nassistant: <think>\n") == "<think>\n"
    assert opened_by("<think>no</think> assistant:") == ""
    assert without_opened(GOOD, "<think>\n") == GOOD.removeprefix("<think>")
    assert without_opened(GOOD, "") == GOOD
