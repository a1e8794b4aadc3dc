"""Conformance checks for plugin authors: call one in a test of your package.

>>> from locus_lightning.testing import check_reward
>>> check_reward(MyReward())  # doctest: +SKIP

Each raises ``AssertionError`` with a sentence that says what the contract asks for.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from locus_lightning.boxes import size_bin
from locus_lightning.cue_samplers.base import CueSampler
from locus_lightning.rewards.base import Reward
from locus_lightning.types import Completion, Cue, CueSample, CueWindow, SceneObject

__all__ = ["check_cue_sampler", "check_reward", "example_sample"]

_TEXTS = ("", "<think></think><answer>[1, 2, 3, 4]</answer>", "<answer>", "[[[[", "ünïcode \x00", "9" * 5000)


def example_sample(width: int = 120, height: int = 90) -> CueSample:
    """A sample of noise whose cue is the window (20, 30, 60, 70)."""
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image, window = Image.fromarray(pixels), (20, 30, 60, 70)
    return CueSample("example", image, Cue(image.crop(window), CueWindow(window, "large")), (20.0, 30.0, 60.0, 70.0))


def check_reward(reward: Reward) -> None:
    """A reward never raises, is finite and deterministic, and leaves its inputs alone."""
    sample = example_sample()
    before = sample.image.tobytes()
    boxes = (None, sample.box, (0.0, 0.0, 120.0, 90.0), (-50.0, -50.0, 900.0, 900.0), (5.0, 5.0, 5.5, 5.5))
    completions = [Completion(text, box, bool(box), truncated=not box) for text in _TEXTS for box in boxes]
    for completion in completions:
        score = reward.score(completion, sample)
        assert isinstance(score, float | int), f"{reward.name}: score is {score!r}, not a number"
        assert math.isfinite(score), f"{reward.name}: score of {completion!r} is {score}"
        assert score == reward.score(completion, sample), f"{reward.name} is not deterministic: {completion!r}"
    group = reward.score_group(completions, sample)
    assert len(group) == len(completions), f"{reward.name}: score_group gave {len(group)} scores for {len(completions)} completions"
    assert sample.image.tobytes() == before, f"{reward.name} changed the sample's image"


def check_cue_sampler(sampler: CueSampler, seeds: int = 20) -> None:
    """Windows are integer, inside the image, large enough, in the right size bin, and a function of the generator alone."""
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        size = (int(rng.integers(40, 1200)), int(rng.integers(40, 1200)))
        corners = np.sort(rng.uniform(0, 1, (8, 2, 2)), axis=1) * size
        objects = [SceneObject((*a, *b), "thing", i) for i, (a, b) in enumerate(corners.tolist())]
        windows = sampler.sample(size, objects, np.random.default_rng(seed)) or []
        again = sampler.sample(size, objects, np.random.default_rng(seed)) or []
        assert windows == again, "the same generator gave other windows: draw from `rng` only"
        for window in windows:
            x1, y1, x2, y2 = window.box
            assert all(isinstance(v, int) for v in window.box), f"{window.box} is not integer"
            assert 0 <= x1 < x2 <= size[0], f"{window.box} is not inside {size}"
            assert 0 <= y1 < y2 <= size[1], f"{window.box} is not inside {size}"
            assert min(x2 - x1, y2 - y1) >= sampler.min_side, f"{window.box} has a side under min_side {sampler.min_side}"
            assert window.size_bin == size_bin((x1, y1, x2, y2), size), f"{window.box} is filed under {window.size_bin}"
