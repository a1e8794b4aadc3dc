"""Conformance checks for plugin authors: call one in a test of your package.

>>> from locus_lightning.testing import check_reward
>>> check_reward(MyReward())  # doctest: +SKIP

Each raises ``AssertionError`` with a sentence that says what the contract asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from locus_lightning.boxes import BoxFrame
from locus_lightning.cue_samplers.base import CueSampler, Picture, checked_windows
from locus_lightning.errors import PluginError
from locus_lightning.rewards.base import Reward, checked_scores
from locus_lightning.tasks.base import Task
from locus_lightning.testing.models import check_backbone, check_objective, check_rollout, toy_tokenizer
from locus_lightning.types import Completion, Cue, CueSample, CueWindow, IntBox, SceneObject

__all__ = [
    "check_backbone", "check_cue_sampler", "check_objective", "check_reward", "check_rollout", "check_task", "example_sample", "toy_tokenizer",
]  # fmt: skip

_TEXTS = ("", "<think></think><answer>[1, 2, 3, 4]</answer>", "<answer>", "[[[[", "ünïcode \x00", "9" * 5000)


def example_sample(width: int = 120, height: int = 90, others: Sequence[IntBox] = ()) -> CueSample:
    """A sample of noise whose cue is the window (20, 30, 60, 70); ``others`` are further windows."""
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image, window = Image.fromarray(pixels), (20, 30, 60, 70)
    windows = tuple(CueWindow(box, "large") for box in others)
    return CueSample("example", image, Cue(image.crop(window), CueWindow(window, "large")), (20.0, 30.0, 60.0, 70.0), others=windows)


def check_reward(reward: Reward) -> None:
    """A reward never raises, gives finite numbers, is deterministic, and leaves its inputs alone: what training asks of it."""
    sample = example_sample()
    before = sample.image.tobytes()
    boxes = (None, sample.box, (0.0, 0.0, 120.0, 90.0), (-50.0, -50.0, 900.0, 900.0), (5.0, 5.0, 5.5, 5.5))
    completions = [Completion(text, box, bool(box), truncated=not box) for text in _TEXTS for box in boxes]
    try:
        scores = checked_scores(reward, completions, sample)
    except PluginError as error:
        raise AssertionError(str(error)) from error
    again = checked_scores(reward, completions, sample)
    for completion, first, second in zip(completions, scores, again, strict=True):
        assert first == second, f"{reward.name} is not deterministic: {completion!r}"
    assert sample.image.tobytes() == before, f"{reward.name} changed the sample's image"


def check_task(task: Task) -> None:
    """The right answer is parsed as right, no text raises, scores lie in [0, 1], and a sample is a function of the generator alone."""
    source = example_sample(others=((60, 10, 110, 60), (5, 5, 40, 25)))
    for seed in range(5):
        sample = task.sample(source, np.random.default_rng(seed))
        frame = BoxFrame.thousandths(sample.image.size)
        target = task.target_text(sample, frame)
        again = task.sample(source, np.random.default_rng(seed))
        assert task.target_text(again, frame) == target, "the same generator gave another sample: draw from `rng` only"
        content = task.messages(sample, frame)
        assert any(isinstance(part, Image.Image) for part in content), "the message shows no image"
        assert all(isinstance(part, str | Image.Image) for part in content), "a message holds words and images only"
        right = task.complete(target, sample, frame)
        assert right.well_formed, f"the right answer is not well formed once it is parsed: {target!r}"
        assert right.score > 0.9, f"the right answer scores {right.score}: {target!r}"
        for text in (*_TEXTS, target[: len(target) // 2], target * 2):
            completion = task.complete(text, sample, frame)
            assert 0.0 <= completion.score <= 1.0, f"the score of {text!r} is {completion.score}"
        for name, answer in task.blind_answers(sample).items():
            assert 0.0 <= task.score_answer(answer, sample) <= 1.0, f"the blind answer {name!r} scores outside [0, 1]"
    metric = task.metrics()
    metric.update([right], [sample])
    figures = metric.compute()
    missing = [name for name in (task.headline, "samples", "floor", "parse_rate", *task.columns) if name not in figures]
    assert not missing, f"metrics() gives no {', '.join(missing)}"


def check_cue_sampler(sampler: CueSampler, seeds: int = 20) -> None:
    """Windows are integer, inside the image, large enough, in the right size bin, a function of the generator alone, and there are some."""
    number = 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        size = (int(rng.integers(40, 1200)), int(rng.integers(40, 1200)))
        corners = np.sort(rng.uniform(0, 1, (8, 2, 2)), axis=1) * size
        objects = [SceneObject((*a, *b), f"thing {i}", i) for i, (a, b) in enumerate(corners.tolist())]
        noise = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
        picture = Picture(size, f"of seed {seed}", seed, noise.copy)
        try:
            windows, again = (checked_windows(sampler, picture, objects, np.random.default_rng(seed)) for _ in range(2))
        except PluginError as error:
            raise AssertionError(str(error)) from error
        assert windows == again, "the same generator gave other windows: draw from `rng` only"
        number += len(windows)
    assert number, f"{type(sampler).__name__} gave no window for any of {seeds} images of 8 objects each"
