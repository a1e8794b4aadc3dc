"""Shared fixtures: toy models of real architectures, drawn samples, no network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning  # noqa: F401 - its log handler must take hold of the real stderr, not of a test's
import numpy as np
import pytest
import torch
from PIL import Image

from locus_lightning import plugins
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.backbones.toy import save_toy_checkpoint
from locus_lightning.tasks.base import Task
from locus_lightning.tasks.cue_search import CueSearch
from locus_lightning.tasks.question_answering import QuestionAnswering
from locus_lightning.types import Completion, Content, Cue, CueSample, CueWindow, Question, Sample

torch.set_num_threads(1)

FAMILIES: dict[str, type[HFBackbone]] = {
    family: plugins.load("backbones", name)
    for family, name in {
        "llava": "LlavaBackbone",
        "llava_next": "LlavaNextBackbone",
        "llava_onevision": "LlavaOnevisionBackbone",
        "qwen2_vl": "Qwen2VLBackbone",
        "qwen2_5_vl": "Qwen2_5_VLBackbone",
        "qwen3_vl": "Qwen3VLBackbone",
        "internvl": "InternVLBackbone",
        "idefics3": "SmolVLMBackbone",
        "smolvlm": "SmolVLMBackbone",
        "mistral3": "Mistral3Backbone",
        "qwen3_vl_moe": "Qwen3VLBackbone",
        "qwen3_5": "Qwen3_5Backbone",
        "aya_vision": "AyaVisionBackbone",
        "glm4v": "Glm4VBackbone",
        "gemma3": "Gemma3Backbone",
    }.items()
}
PACKED = [family for family, kind in FAMILIES.items() if kind.convention.packs]


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=PACKED)
def packed_family(request: pytest.FixtureRequest) -> str:
    """A family whose completions share a prompt."""
    return request.param


@pytest.fixture
def make_backbone() -> Callable[..., HFBackbone]:
    """A loaded toy backbone of a family; the same weights for the same seed."""

    def make(family: str, seed: int = 0, **settings: object) -> HFBackbone:
        torch.manual_seed(seed)
        backbone = FAMILIES[family](f"toy:{family}", **settings)  # type: ignore[arg-type]
        backbone.check()
        backbone.load()
        return backbone

    return make


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A toy checkpoint on disk, written once a session and process."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            torch.manual_seed(0)
            made[family] = save_toy_checkpoint(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


def make_sample(width: int = 100, height: int = 80, box: tuple[int, int, int, int] = (10, 12, 44, 40), seed: int = 0) -> CueSample:
    pixels = np.random.default_rng([seed, width, height]).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    x1, y1, x2, y2 = box
    return CueSample(f"sample-{seed}", image, Cue(image.crop(box), CueWindow(box, "large")), (float(x1), float(y1), float(x2), float(y2)))


@pytest.fixture
def samples() -> list[CueSample]:
    """Three samples of different shape, so that prompts differ in length where the family allows."""
    return [make_sample(), make_sample(60, 130, (3, 60, 30, 110), 1), make_sample(150, 64, (100, 5, 140, 50), 2)]


def make_completion(
    text: str, box: tuple[float, float, float, float] | None = None, well_formed: bool = True, score: float = 0.0
) -> Completion:
    return Completion(text, box, well_formed, truncated=False, score=score)


def task_of(sample: Sample) -> Task:
    """Cue search, or a plain question."""
    return QuestionAnswering() if isinstance(sample, Question) else CueSearch()


def contents(backbone: HFBackbone, samples: list[Sample]) -> list[Content]:
    """The user messages of samples."""
    return [task_of(sample).messages(sample, backbone.frame(sample.image.size)) for sample in samples]


def target(backbone: HFBackbone, sample: Sample) -> str:
    """What a perfect model writes."""
    return task_of(sample).target_text(sample, backbone.frame(sample.image.size))


def score(backbone: HFBackbone, sample: Sample, text: str) -> float:
    """The task's score of a text."""
    return task_of(sample).complete(text, sample, backbone.frame(sample.image.size)).score


def prompt_length(backbone: HFBackbone, sample: Sample) -> int:
    """Tokens of a sample's prompt."""
    return backbone.prompt_length(contents(backbone, [sample])[0])
