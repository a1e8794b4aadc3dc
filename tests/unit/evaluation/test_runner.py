"""SmallStar, V*Bench's format, and the reading of answers."""

import json

import pytest
import torch
from PIL import Image

from locus_lightning.data.synthetic.drawing import COLOURS
from locus_lightning.data.synthetic.smallstar import KINDS, write_smallstar
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.evaluation.benchmarks.refcoco import RefCOCO
from locus_lightning.evaluation.benchmarks.vstar import VStar, options_of, read_vstar
from locus_lightning.evaluation.extract import extract_letter, official_yes_no
from locus_lightning.evaluation.runner import Settings, evaluate, fingerprint, overlap
from locus_lightning.rollout.hf import HFRollout

OPTIONS = {"A": "red", "B": "green", "C": "light green", "D": "the left side"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("(B)", "B"),
        ("b.", "B"),
        ("C) light green", "C"),
        ("D. the left side", "D"),
        ("<think>red or B</think><answer>B</answer>", "B"),
        ("<think>It is A. No.</think> The answer is (C).", "C"),
        ("The answer is **B**", "B"),
        ("Answer: A", "A"),
        ("red", "A"),
        ("It is red.", "A"),
        ("the left side", "D"),
        ("light green", "C"),
        ("green", "B"),
        ("It is light green", None),  # two options' words
        ("red or the left side", None),
        ("E", None),
        ("", None),
        ("<think>A", None),
        ("I cannot tell", None),
    ],
)
def test_answers_are_read(text, letter):
    assert extract_letter(text, OPTIONS) == letter


def test_options_are_read_from_the_question():
    assert options_of("What?\n(A) red\n(B) dark blue\nAnswer with (A) or (B).") == {"A": "red", "B": "dark blue"}


def test_smallstar_is_in_vstars_format_and_true(tmp_path):
    write_smallstar(tmp_path / "s", number=12)
    items = read_vstar(tmp_path / "s")
    assert [item.kind for item in items] == [KINDS[0]] * 12 + [KINDS[1]] * 12
    for n, item in enumerate(items):
        beside = json.loads(item.image.with_suffix(".json").read_text())
        assert item.options[item.label] == beside["options"][0]  # the right option comes first there
        assert set(item.options.values()) == set(beside["options"])
        with Image.open(item.image) as picture:
            area = picture.width * picture.height
            for x1, y1, x2, y2 in item.boxes:
                share = (x2 - x1) * (y2 - y1) / area
                assert share < 0.01 if n % 2 == 0 else 0.01 <= share < 0.05
                if "colour" in item.text and len(item.boxes) == 1 and "ring" not in item.text:
                    middle = picture.convert("RGB").crop((int(x1), int(y1), int(x2), int(y2)))
                    wanted = COLOURS[item.options[item.label]]
                    exact = sum(
                        count for count, rgb in middle.getcolors(1 << 16) if max(abs(a - b) for a, b in zip(rgb, wanted, strict=True)) < 4
                    )
                    assert exact > 0
        if len(item.boxes) == 2:
            (a, b), axis = item.boxes, 0 if "left" in item.options.values() else 1
            first = a[axis] + a[axis + 2] < b[axis] + b[axis + 2]
            assert beside["options"][0] == (("left", "right"), ("above", "below"))[axis][0 if first else 1]


def test_smallstar_is_the_same_for_the_same_seed_and_other_for_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_smallstar(tmp_path / name, number=3, seed=seed)
    texts = {name: (tmp_path / name / "test_questions.jsonl").read_text() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]
    with pytest.raises(ConfigError, match="not empty"):
        write_smallstar(tmp_path / "a")


def test_what_is_not_a_benchmark_is_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no test_questions.jsonl"):
        read_vstar(tmp_path)
    (tmp_path / "test_questions.jsonl").write_text('{"image": "a.png", "text": "?"}\n')
    with pytest.raises(DataError, match="line 1"):
        read_vstar(tmp_path)
    (tmp_path / "test_questions.jsonl").write_text('{"image": "a.png", "text": "?", "label": "A", "category": "x", "question_id": 1}\n')
    with pytest.raises(DataError, match="does not exist"):
        read_vstar(tmp_path)


def test_a_fingerprint_is_of_the_weights_alone_not_of_the_order_they_are_added_in(make_backbone):
    backbone = make_backbone("llava")
    before, threads = fingerprint(backbone), torch.get_num_threads()
    try:
        for other in (1, 3):
            torch.set_num_threads(other)
            assert fingerprint(backbone) == before
    finally:
        torch.set_num_threads(threads)
    with torch.no_grad():
        next(backbone.model.parameters()).view(-1)[0] += 0.1
    assert fingerprint(backbone) != before


COLOURED = {"A": "a white dog", "B": "black", "C": "a cat"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is a white dog.", "A"),
        ("The correct answer is B. Option A is wrong.", "B"),
        ("(A) a white dog\n(B) black\n(C) a cat\nAnswer: B", "B"),
        ("A. a white dog\nB. black\nThe answer is black", "B"),
        ("B, not a white dog.", "B"),
        ("**B**", "B"),
        ("$\\boxed{B}$", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ('"B"', "B"),
        ("I would pick B.", "B"),
        ("B。", "B"),
        ("（B）", "B"),
        ("（B） black", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("B: black", "B"),
        ("B - black", "B"),
        ("B\nbecause it is dark", "B"),
        ("Option B", "B"),
        ("The correct option is (b).", "B"),
        ("I choose option B because it is dark.", "B"),
        ("the answer is b", "B"),
        ("I would pick option b.", "B"),
        ("The answer is A cat", "C"),  # a capital before a word may be an article
        ("It is not A. The answer is: B", "B"),
        ("Answer: **B**", "B"),
        ("a", "A"),
        ("A cat is on the left", "C"),
        ("it is black", "B"),
        ("black or a cat", None),
        ("Both A and B", None),
        ("I see a dog", None),
        ("<think>The answer is A</think>\nB", "B"),
        ("</think>The answer is B", "B"),
        ("<answer>B", "B"),
    ],
)
def test_wordy_answers_are_read_or_left_unread(text, letter):
    assert extract_letter(text, COLOURED) == letter


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("There is a dog.", "yes"),
        ("No, there is none.", "no"),
        ("There is not a dog. Yes.", "no"),
        ("Yes. There is no cat.", "yes"),
        ("", "yes"),
    ],
)
def test_popes_own_rule(text, said):
    assert official_yes_no(text) == said


@pytest.fixture
def smallstar(tmp_path):
    write_smallstar(tmp_path / "s", number=4)
    return tmp_path / "s"


def test_a_broken_picture_is_left_out_counted_and_listed(make_backbone, smallstar, tmp_path):
    (smallstar / KINDS[0] / "0001.png").write_bytes(b"not a picture")
    backbone, settings = make_backbone("llava"), Settings(max_new_tokens=4, batch_size=3)
    for again in range(2):  # a rerun leaves it out again
        result = evaluate(backbone, "toy", VStar(smallstar), tmp_path / "out", settings, HFRollout())
        assert result["questions"] == 7, again
        (left_out,) = result["malformed"]
        assert "its picture cannot be used (UnidentifiedImageError" in left_out
    for picture in smallstar.rglob("*.png"):
        picture.write_bytes(b"not a picture")
    with pytest.raises(DataError, match="no picture of vstar can be used, such as question"):
        evaluate(backbone, "toy", VStar(smallstar), tmp_path / "other", settings, HFRollout())


def test_a_model_that_may_have_seen_the_pictures_is_said_to(tmp_path):
    trained = {"annotations": ["instances_train2014.json"], "exclude": ""}
    assert "was trained on instances_train2014.json and no images were excluded" in overlap("run", trained, RefCOCO(tmp_path))
    assert "pictures of refcoco (COCO train2014) may be among them" in overlap("run", trained, RefCOCO(tmp_path))
    assert not overlap("run", {**trained, "exclude": "refs(unc).p"}, RefCOCO(tmp_path))
    assert not overlap("run", trained, VStar(tmp_path)), "V*Bench's pictures are not COCO's"
    assert not overlap("base", None, RefCOCO(tmp_path))
