"""Tasks: what is asked is what is scored, in every frame; mixtures keep their tasks apart."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from locus_lightning.boxes import BoxFrame
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.data.datamodule import CueDataModule, TaskDataset
from locus_lightning.data.source import CueKey
from locus_lightning.data.synthetic.scenes import SceneCues
from locus_lightning.errors import ConfigError
from locus_lightning.rewards.format import FormatReward
from locus_lightning.rewards.iou import IoUReward
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.tasks.base import check_fit
from locus_lightning.tasks.cue_search import CuePrompt, CueSearch
from locus_lightning.tasks.mixture import TaskMixture
from locus_lightning.tasks.multi_cue import MultiCue
from locus_lightning.tasks.question_answering import QuestionAnswering
from locus_lightning.training.grpo import LocusModule
from locus_lightning.types import CueWindow, Question, RolloutGroup
from tests.conftest import FAMILIES, make_sample

FRAME = BoxFrame.thousandths((100, 80))
WITH_OTHERS = replace(
    make_sample(),
    others=(CueWindow((50, 10, 90, 40), "large"), CueWindow((20, 50, 60, 75), "large")),
)


def several(cues=3, **settings):
    return MultiCue(cues, **settings), MultiCue(cues, **settings).sample(WITH_OTHERS, np.random.default_rng(0))


def test_the_right_answer_of_every_task_is_right():
    multi, sample = several()
    for task, one in ((CueSearch(), make_sample()), (multi, sample)):
        text = task.target_text(one, FRAME)
        completion = task.complete(text, one, FRAME)
        assert completion.well_formed
        assert completion.score > 0.9
        assert task.complete(text.removeprefix("<think>"), one, FRAME, opened="<think>\n").well_formed, "the template opened the block"
        assert not task.complete(text.removeprefix("<think>"), one, FRAME).well_formed


@pytest.mark.parametrize(
    "text", ["", "<answer>", "<think></think><answer>nothing</answer>", "<think></think><answer>[1, 2]</answer>", "\x00" * 50]
)
def test_no_text_raises(text):
    multi, sample = several()
    for task, one in ((CueSearch(), make_sample()), (multi, sample)):
        completion = task.complete(text, one, FRAME)
        assert completion.answer is None
        assert completion.score == 0.0
        assert not completion.well_formed


def test_several_cues_are_other_windows_of_the_same_image():
    task, sample = several()
    assert len(sample.cues) == len(sample.boxes) == 3
    assert sample.boxes[0] == WITH_OTHERS.box
    assert {tuple(map(int, box)) for box in sample.boxes[1:]} == {window.box for window in WITH_OTHERS.others}
    for crop, box in zip(sample.cues[1:], sample.boxes[1:], strict=True):
        assert np.array_equal(np.asarray(crop), np.asarray(sample.image.crop(tuple(map(int, box)))))
    content = task.messages(sample, FRAME)
    assert [part for part in content if not isinstance(part, str)] == [sample.image, *sample.cues]
    assert len(several(1)[1].cues) == 1


def test_boxes_in_another_order_are_right_only_where_the_order_is_free():
    task, sample = several()
    wrong_order = (sample.boxes[1], sample.boxes[0], sample.boxes[2])
    assert task.score_answer(wrong_order, sample) < 0.5
    assert several(matching="best")[0].score_answer(wrong_order, sample) == pytest.approx(1.0)


def test_the_papers_order_shows_both_images_first():
    sample = make_sample()
    image, cue, words = CueSearch(layout="images_first").messages(sample, FRAME)
    assert (image, cue) == (sample.image, sample.cue.image)
    assert isinstance(words, str)
    labelled = CueSearch().messages(sample, FRAME)
    assert [type(part) is str for part in labelled] == [True, False, True, False, True]


def test_a_mixture_asks_each_sample_as_one_task_and_reports_each(make_backbone):
    mixture = TaskMixture([CueSearch(), MultiCue(2)], weights=[1, 3])
    data = TaskDataset(
        SceneCues(object_size=(0.065, 0.22), cue_sampler=ObjectCues(min_side=12), train_size=400).dataset("train", 0), mixture, 0, "train"
    )
    samples = [data[CueKey(0, i)] for i in range(200)]
    share = sum(sample.task == "multicue" for sample in samples) / len(samples)
    assert share == pytest.approx(0.75, abs=0.1)
    assert data[CueKey(0, 3)].task == samples[3].task, "a function of the key"
    frame = BoxFrame.thousandths((192, 192))
    completions = [mixture.complete(mixture.target_text(s, frame), s, frame) for s in samples]
    figures = mixture.rollout_figures(completions, samples)
    assert figures["multicue/score"] > 0.8
    assert figures["cuesearch/parse_rate"] == 1.0
    only = mixture.rollout_figures(completions[:1], samples[:1])
    assert only.keys() == figures.keys()
    assert sum(value != value for value in only.values()) == 2, "the task that is absent has no figures"
    metric = mixture.metrics()
    metric.update(completions, samples)
    computed = metric.compute()
    assert float(computed["samples"]) == 200
    assert float(computed["samples_multicue"]) == round(share * 200)
    metric.reset()
    assert float(metric.compute()["samples"]) == 0
    assert mixture.draw(RolloutGroup(samples[0], None, tuple(completions[:2]), {}, (1.0, 0.5))).width > 100


def test_a_reward_that_cannot_score_the_answers_is_refused():
    check_fit(MultiCue(), [IoUReward(), FormatReward()])
    with pytest.raises(ConfigError, match="IoUReward scores box or boxes answers and TaskMixture has mixed answers"):
        check_fit(TaskMixture([CueSearch()]), [IoUReward()])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiCue(0), "from 1 to 6"),
        (lambda: TaskMixture([]), "at least one task"),
        (lambda: TaskMixture([CueSearch(), CueSearch()]), "none twice"),
        (lambda: TaskMixture([CueSearch()], [0.0]), "one above 0"),
        (lambda: CuePrompt(instruction="{units}"), "placeholder"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_metrics_survive_a_half_precision_module():
    """Lightning's 16-bit plugins cast a module's float tensors; a sum of ones in bfloat16 stops at 256."""
    for task in (CueSearch(), MultiCue()):
        holder = nn.Module()
        holder.metric = task.metrics()
        holder.to(torch.bfloat16).half().float()
        holder.to(dtype=torch.bfloat16, device="cpu")
        sample = make_sample() if isinstance(task, CueSearch) else several()[1]
        completion = task.complete(task.target_text(sample, FRAME), sample, FRAME)
        for _ in range(300):
            holder.metric.update([completion], [sample])
        figures = holder.metric.compute()
        assert float(figures["samples"]) == 300
        assert float(figures["iou"]) == pytest.approx(completion.score, abs=1e-6)
        holder.metric.reset()
        assert holder.metric.metric_state
        assert all(state.dtype == torch.float64 for state in holder.metric.metric_state.values())


@pytest.mark.parametrize("task", [MultiCue(2), TaskMixture([CueSearch(), MultiCue(3)])], ids=lambda task: task.name)
def test_every_task_trains(task):
    import lightning as L

    torch.manual_seed(0)
    model = LocusModule(FAMILIES["qwen2_vl"]("toy:qwen2_vl"), task, sampling=SamplingParams(5), group_size=2, micro_batch_size=2)
    data = CueDataModule(SceneCues(image_size=96, train_size=8, val_size=2), batch_size=2, val_batch_size=2)
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == 1
    (figures,) = trainer.validate(model, datamodule=data, verbose=False)
    assert f"val/{task.headline}" in figures
    assert {row["id"] for rows in trainer.predict(model, datamodule=data) for row in rows} == {"scene-val-0-0", "scene-val-0-1"}


def test_no_model_file_knows_a_sample_type():
    """The boundary: a backbone sees words, images and sizes."""
    for path in (Path(__file__).parents[3] / "src/locus_lightning/backbones").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "locus_lightning.types":
                assert not {"CueSample", "Question", "Sample"} & {alias.name for alias in node.names}, path


def test_crops_are_scaled_as_their_windows_say():
    sample = replace(make_sample(), others=(CueWindow((50, 10, 90, 40), "large", scale=2.0),))
    made = MultiCue(2).sample(sample, np.random.default_rng(0))
    assert made.cues[1].size == (80, 60)


def test_the_default_reward_of_several_boxes_is_the_tasks_own_score():
    names = {}
    for task in (CueSearch(), MultiCue(matching="best"), TaskMixture([CueSearch()])):
        model = LocusModule(FAMILIES["llava"]("toy:llava"), task)
        names[task.name] = [reward.name for reward in model.rewards]
    assert names == {"cuesearch": ["iou", "format"], "multicue": ["answer", "format"], "taskmixture": ["answer", "format"]}


def test_plain_questions_are_answered_behind_an_opened_think_block():
    question = Question("q", make_sample().image, "What colour?", "red")
    for text in ("red", "it is red</think>red", "hm</think>\n red "):
        assert QuestionAnswering().complete(text, question, FRAME, opened="<think>\n").score == 1.0, text
    assert QuestionAnswering().complete("red", question, FRAME).score == 1.0
    assert QuestionAnswering().complete("blue", question, FRAME, opened="<think>\n").score == 0.0


def test_a_mixtures_floor_is_that_of_its_tasks():
    mixture = TaskMixture([CueSearch(), MultiCue(2)])
    samples = [replace(make_sample(), task="cuesearch"), replace(several(2)[1], task="multicue")]
    completions = [mixture.complete("", sample, FRAME) for sample in samples]
    expected = (
        sum(task.rollout_figures([c], [s])["floor"] for task, c, s in zip(mixture.tasks.values(), completions, samples, strict=True)) / 2
    )
    metric = mixture.metrics()
    metric.update(completions, samples)
    assert float(metric.compute()["floor"]) == pytest.approx(expected)
    assert mixture.rollout_figures(completions, samples)["floor"] == pytest.approx(expected)
    with pytest.raises(ConfigError, match="list its tasks instead"):
        TaskMixture([mixture])
