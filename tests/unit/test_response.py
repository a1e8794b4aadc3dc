from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locus_lightning.response import parse_response, write_response

GOOD = "<think>it is on the left</think>\n<answer>[1, 2, 30, 40]</answer>"


def test_a_right_answer_reads_back():
    response = parse_response(write_response("because", "[1, 2, 30, 40]"))
    assert response.box_text == (1, 2, 30, 40)
    assert response.well_formed


@pytest.mark.parametrize(
    ("text", "box", "well_formed"),
    [
        (GOOD, (1, 2, 30, 40), True),
        ("<think></think><answer> [0.12, 0.2, 0.9, 1.0] </answer>", (0.12, 0.2, 0.9, 1.0), True),
        ('<think>a</think><answer>{"bbox_2d": [1, 2, 3, 4]}</answer>', (1, 2, 3, 4), True),
        ("<think>a</think><answer>(1,2),(3,4)</answer>", None, False),
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
    response = parse_response(text)
    assert response.box_text == box
    assert response.well_formed is well_formed


@given(st.text() | st.text("<>/thinkanswer[](),.0123456789e+- \n", max_size=80).map(lambda s: f"<think>{s}</think><answer>{s}</answer>"))
def test_never_raises(text):
    response = parse_response(text)
    assert response.box_text is None or response.box_text[0] < response.box_text[2]


def test_full_width_digits_are_no_trap():
    response = parse_response("<think>a</think><answer>[１, ２, ３, ４]</answer>")
    assert response.box_text in (None, (1, 2, 3, 4))
