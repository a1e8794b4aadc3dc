"""QA examples about drawn scenes: what is asked has one right answer, and questions about one picture are paid for once."""

import numpy as np
import pytest
import torch

from locus_lightning.backbones.toy.locus_tiny import locus_tiny
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.cue_samplers.text_cue import TextCues
from locus_lightning.data.source import CueBatch, CueKey
from locus_lightning.data.synthetic.curriculum import SceneQA, Stage, qa_examples
from locus_lightning.data.synthetic.drawing import SHAPES
from locus_lightning.data.synthetic.qa_examples import TASKS, matching, phrase
from locus_lightning.data.synthetic.scenes import SceneCues
from locus_lightning.errors import ConfigError
from locus_lightning.training.sft import SupervisedModule, by_image
from locus_lightning.types import CueSample, Question
from tests.conftest import contents, score, target

SCENES = SceneCues(image_size=96, objects=(3, 5), object_size=(0.12, 0.3))


def test_a_phrase_fits_one_object_and_leaves_out_what_is_asked_for():
    rng = np.random.default_rng(0)
    spoken = 0
    for _ in range(100):
        scene = SCENES.draw(rng)
        for i, look in enumerate(scene.looks):
            words = phrase(scene.looks, i, rng, leave_out="colour")
            if words is None:
                continue
            spoken += 1
            assert look.colour not in words
            said = words.split()
            attributes = {"shape": look.shape} if look.shape in said else {}
            texture = {"plain": "plain", "striped": "stripes", "dotted": "dots", "checked": "checks"}
            attributes |= {"texture": word for w, word in texture.items() if w in said}  # noqa: B035
            assert matching(scene.looks, **attributes) == [i]
    assert spoken > 100


@pytest.mark.parametrize("task", TASKS)
def test_every_kind_is_answered_from_its_scene(task):
    rng = np.random.default_rng(1)
    for _ in range(30):
        scene = SCENES.draw(rng)
        made = TASKS[task](scene, rng)
        if made is None:
            continue
        assert set(made.boxes) <= set(scene.boxes)
        labels = [("an " if look.colour == "orange" else "a ") + look.label for look in scene.looks]
        if task.startswith("list"):
            names = [part.replace(f"{{{n}}}", "").strip() for n, part in enumerate(made.answer.split(";"))]
            assert [labels[scene.boxes.index(box)] for box in made.boxes] == names
            assert len(names) == len(labels)
        elif task == "name_box":
            assert labels[scene.boxes.index(made.boxes[0])] == made.answer
        elif task == "name_crop":
            assert made.answer in labels
            x1, y1, x2, y2 = made.crop
            own = scene.boxes[labels.index(made.answer)]
            assert labels.count(made.answer) > 1 or (x1 <= own[0] and y1 <= own[1] and x2 >= own[2] and y2 >= own[3])
        elif task == "count":
            word = made.text.split()[2]
            attribute = {"colour": word} if "things" in made.text else {"shape": word.removesuffix("es" if word == "crosses" else "s")}
            assert int(made.answer) == len(matching(scene.looks, **attribute))
        elif task.startswith("choose"):
            assert f") {made.verdict or made.answer}\n" in made.text
        else:
            assert made.answer


def test_relations_are_true():
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(200):
        scene = SceneCues(image_size=96, objects=(2, 2), object_size=(0.1, 0.2)).draw(rng)
        made = TASKS["relation"](scene, rng)
        if made is None or len(scene.boxes) < 2 or scene.looks[0].colour == scene.looks[1].colour:
            continue
        first = 0 if _fits(made.text.split(" the ")[1], scene.looks[0]) else 1
        axis = 0 if made.verdict in ("left", "right") else 1
        centre = [box[axis] + box[axis + 2] for box in scene.boxes]
        assert (made.verdict in ("left", "above")) == (centre[first] < centre[1 - first])
        assert made.answer == f"{{0}} {{1}} {made.verdict}"
        assert made.boxes == (scene.boxes[first], scene.boxes[1 - first])
        seen.add(made.verdict)
    assert seen == {"left", "right", "above", "below"}


def _fits(words: str, look) -> bool:
    texture = {"plain": "plain", "stripes": "striped", "dots": "dotted", "checks": "checked"}[look.texture]
    known = {look.colour, look.shape, texture, "thing", "on", "above", "or", "below"}
    return set(words.split()) <= known


def test_qa_examples_follow_their_stage_and_depend_on_the_key_alone():
    easy = Stage(1, SceneCues(image_size=64, objects=(1, 1), object_size=(0.3, 0.4)), {"list": 1, "ground": 1, "cue": 1})
    hard = Stage(1, SCENES, {"relation": 1, "list": 1})
    easy.scenes.cue_sampler.mix, easy.scenes.cue_sampler.min_side = {"medium": 0.5, "large": 0.5}, 8
    source = SceneQA([easy, hard], SceneCues(image_size=96, object_size=(0.2, 0.3)), per_scene=3, train_size=8, val_size=30)
    train = source.dataset("train", 0)
    one, again, other = train[CueKey(0, 3)], train[CueKey(0, 3)], train[CueKey(1, 3)]
    assert [getattr(s, "text", "") for s in one] == [getattr(s, "text", "") for s in again]
    assert {s.kind if isinstance(s, Question) else "cue" for s in one} <= {"list", "ground", "cue"}
    assert {s.kind for s in other} <= {"relation", "list"}
    assert {s.kind for s in train[CueKey(7, 3)]} <= {"relation", "list"}  # the last stage lasts
    held_out = CueBatch(source.dataset("val", 0)[CueKey(0, i)] for i in range(len(source.dataset("val", 0))))
    assert sum(isinstance(s, CueSample) for s in held_out) == 10
    assert {s.kind for s in held_out if isinstance(s, Question)} == set(TASKS)


def test_the_search_is_asked_for_by_a_crop_and_by_words():
    large = {"image_size": 96, "objects": (1, 2), "object_size": (0.3, 0.4)}
    by_crop = SceneCues(**large, cue_sampler=ObjectCues({"medium": 1, "large": 1}, min_side=8))
    by_words = SceneCues(**large, cue_sampler=TextCues({"medium": 1, "large": 1}, min_side=8))
    stage = Stage(1, SCENES, {"cue": 1, "text_cue": 1}, cues=by_crop, text_cues=by_words)
    one, other = sorted(qa_examples("x", stage, 2, np.random.default_rng(0)), key=lambda sample: bool(sample.cue.text))
    assert not one.cue.text
    assert other.cue.text.split()[-1] in SHAPES


def test_a_mix_of_unknown_kinds_or_impossible_qa_examples_is_refused():
    with pytest.raises(ConfigError, match="unknown: cues"):
        Stage(1, SCENES, {"cues": 1.0})
    for text_cues in (None, SCENES):
        with pytest.raises(ConfigError, match="whose cue_sampler is TextCues"):
            Stage(1, SCENES, {"text_cue": 1.0}, text_cues=text_cues)
    with pytest.raises(ConfigError, match="give no QA example"):
        qa_examples("x", Stage(1, SceneCues(objects=(1, 1)), {"relation": 1.0}), 1, np.random.default_rng(0))


def test_questions_about_one_picture_in_one_row_give_what_each_gives_alone(family, make_backbone):
    backbone = make_backbone(family, dtype="float64")
    every = qa_examples("x", Stage(1, SCENES, dict.fromkeys(TASKS, 1.0)), 5, np.random.default_rng(3))
    groups = by_image(every)
    prompts, rests = backbone.encode_shared([contents(backbone, group) for group in groups])
    for group, prompt, rest in zip(groups, prompts, rests, strict=True):
        answers = [backbone.tokenize_answer(target(backbone, question)) for question in group]
        together, _ = backbone.logps([prompt], [[torch.cat(pair) for pair in zip(rest, answers, strict=True)]])
        for k, question in enumerate(group):
            alone, _ = backbone.logps(backbone.encode(contents(backbone, [question])), [[answers[k]]])
            mine = together[0, k, len(rest[k]) : len(rest[k]) + len(answers[k])]
            torch.testing.assert_close(mine, alone[0, 0], rtol=0, atol=1e-9)


def test_supervised_training_lowers_the_loss_of_a_mixed_batch(make_backbone):
    backbone = make_backbone("llava", train_vision=True)
    module = SupervisedModule(backbone)
    module.log = lambda *a, **k: None  # no trainer here
    every = qa_examples(
        "x",
        Stage(1, SCENES, {**dict.fromkeys(TASKS, 1.0), "cue": 2.0}, cues=SceneCues(image_size=96, object_size=(0.15, 0.2))),
        7,
        np.random.default_rng(3),
    )
    batch = CueBatch(every)
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(6):
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_every_answer_counts_alike_where_it_is_asked_for(make_backbone):
    backbone = make_backbone("llava").double()
    stage = Stage(1, SCENES, {"list": 1.0, "attribute": 1.0, "cue": 1.0})
    batch = CueBatch(sample for k in range(2) for sample in qa_examples(str(k), stage, 3, np.random.default_rng(k)))
    alone = []
    for sample in batch:
        answer = backbone.tokenize_answer(target(backbone, sample))
        logps, _ = backbone.logps(backbone.encode(contents(backbone, [sample])), [[answer]])
        alone.append(-logps[0, 0, : len(answer)])
    assert len({len(one) for one in alone}) > 2
    for reduction, expected in (
        ("sequence", torch.stack([one.mean() for one in alone]).mean()),
        ("token", torch.cat(alone).mean()),
    ):
        module = SupervisedModule(backbone, reduction=reduction)
        module.log = lambda *a, **k: None
        torch.testing.assert_close(module.training_step(batch, 0), expected.float(), rtol=0, atol=1e-5)


def test_marks(make_backbone, samples):
    backbone = make_backbone("llava", coordinates="pixels")
    image = samples[0].image  # 100 x 80, padded to 100 x 100, 48 px in the tower
    asked = Question("q", image, "Where?", "{0} {1}", ((10.0, 10.0, 50.0, 50.0), (50.0, 10.0, 90.0, 50.0)))
    right = target(backbone, asked)
    assert score(backbone, asked, right) == pytest.approx(1.0, abs=0.1)
    assert score(backbone, asked, right.split("] ")[0] + "]") == pytest.approx(0.5, abs=0.1)
    assert score(backbone, asked, "nowhere") == 0.0
    words = Question("q", image, "What is at {0}?", "red circle", ((10.0, 10.0, 50.0, 50.0),))
    assert score(backbone, words, " red circle ") == 1.0
    assert score(backbone, words, "red") == 0.0
    led_up_to = Question("q", image, "Left or right?", "{0} {1} left", asked.boxes, verdict="left")
    assert score(backbone, led_up_to, target(backbone, led_up_to)) == 1.0
    assert score(backbone, led_up_to, "[1, 2, 3, 4] [5, 6, 7, 8] left") == 1.0  # the verdict alone decides
    assert score(backbone, led_up_to, "left [1, 2, 3, 4]") == score(backbone, led_up_to, "right") == 0.0


def test_every_word_of_every_qa_example_is_one_token_of_locus_tiny():
    _, processor = locus_tiny()
    rng = np.random.default_rng(0)
    for _ in range(40):
        for example in qa_examples("x", Stage(1, SceneCues(), dict.fromkeys(TASKS, 1.0)), 6, rng):
            text = (example.text + " " + example.answer).format(*["[10, 20, 30, 40]"] * 9)
            pieces = processor.tokenizer.tokenize(text)
            assert len(pieces) <= len(text.split()) + 7 * text.count("[") + 3 * text.count("(") + text.count(";") + 6, pieces


def test_named_by_colour_alone():
    stage = Stage(
        1, SceneCues(image_size=96, objects=(2, 3), colours=["red", "green", "blue"]), {"list": 1, "ground": 1}, colours_only=True
    )
    texts = [q.text + " " + q.answer for i in range(40) for q in qa_examples("x", stage, 2, np.random.default_rng(i))]
    words = {word for text in texts for word in text.replace("?", "").split() if word.isalpha()}
    assert words <= {"List", "all", "Where", "is", "the", "a", "red", "green", "blue"} | {"objects"}
    with pytest.raises(ConfigError, match="colours_only with up to 3 objects and 2 colours"):
        Stage(1, SceneCues(objects=(2, 3), colours=["red", "green"]), {"list": 1}, colours_only=True)


def test_questions_may_have_scenes_of_their_own_and_black_surroundings():
    few = SceneCues(image_size=96, objects=(2, 2), object_size=(0.2, 0.3), background="plain", clutter=0)
    many = SceneCues(image_size=96, objects=(5, 5), object_size=(0.1, 0.15))
    stage = Stage(1, many, {"list": 1.0, "attribute": 1.0}, questions=few, suppressed=0.5)
    lists, black, grey = 0, 0, 0
    for seed in range(60):
        (made,) = qa_examples("x", stage, 1, np.random.default_rng(seed))
        pixels = np.asarray(made.image)
        if made.kind == "list":
            lists += 1
            assert len(made.boxes) == 5, "lists show the many objects"
        elif (pixels == 0).all(axis=-1).mean() > 0.8:
            black += 1
        else:
            assert (pixels == 122).all(axis=-1).mean() > 0.5, "questions show the few objects on plain grey"
            grey += 1
    assert min(lists, black, grey) > 5
    with pytest.raises(ConfigError, match="suppressed is 1.5"):
        Stage(1, many, {"attribute": 1.0}, suppressed=1.5)
