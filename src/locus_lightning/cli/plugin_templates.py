"""The files of a new plugin package, by kind; see ``locus plugins new``."""

from __future__ import annotations

PROJECT = """
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{package}"
version = "0.1.0"
description = "{name}, a plugin for locus-lightning."
requires-python = ">=3.11"
dependencies = ["locus-lightning"]

[project.optional-dependencies]
dev = ["pytest"]

[project.entry-points."locus_lightning.{group}"]
{name} = "{module}:{name}"

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

README = """
# {package}

`{name}` for locus-lightning. Install it, look whether it is found, and run its tests:

```console
pip install -e '.[dev]'
locus plugins {group} --check
pytest
```

{use}
"""

_REWARD = '''
"""{name}: what it rewards."""

from __future__ import annotations

from typing import Any

from locus_lightning.rewards.base import Reward
from locus_lightning.types import Completion


class {name}(Reward):
    """Prefers short answers: 1 for an empty text, 0 from ``longest`` characters on.

    Args:
        longest: The number of characters from which on the score is 0.
        weight: see :class:`Reward`.
        name: likewise.
    """

    def __init__(self, longest: int = 200, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__(weight, name)
        self.longest = longest

    def score(self, completion: Completion, sample: Any) -> float:
        """A score in [0, 1]."""
        return max(0.0, 1.0 - len(completion.text) / self.longest)
'''
_REWARD_TEST = """
from {module} import {name}

from locus_lightning.testing import check_reward
from locus_lightning.types import Completion


def test_it_keeps_the_contract():
    check_reward({name}())


def test_short_answers_score_higher():
    short, long = (Completion(text, None, False, False) for text in ("a", "a" * 100))
    assert {name}().score(short, None) > {name}().score(long, None)
"""

_SAMPLER = '''
"""{name}: which windows of an image become cues."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from locus_lightning.boxes import size_bin
from locus_lightning.cue_samplers.base import CueSampler
from locus_lightning.types import CueWindow, SceneObject, Size


class {name}(CueSampler):
    """One window around one object of an image, drawn at random.

    Args:
        mix: see :class:`CueSampler`.
        min_side: likewise.
    """

    def sample(self, image_size: Size, objects: Sequence[SceneObject], rng: np.random.Generator) -> list[CueWindow] | None:
        """At most one window."""
        for i in rng.permutation(len(objects)):
            window = self.integer_window(objects[i].box, image_size)
            if window is not None and size_bin(window, image_size) in self.mix:
                return [CueWindow(window, size_bin(window, image_size), object_box=objects[i].box, label=objects[i].label, object_id=objects[i].id)]
        return None
'''
_SAMPLER_TEST = """
from {module} import {name}

from locus_lightning.testing import check_cue_sampler


def test_it_keeps_the_contract():
    check_cue_sampler({name}({{"tiny": 1, "small": 1, "medium": 1, "large": 1}}))
"""

_TASK = '''
"""{name}: what is asked about an image, and what is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from PIL import ImageOps

from locus_lightning.boxes import BoxFrame
from locus_lightning.tasks.base import Task
from locus_lightning.types import Content, Sample

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class {name}Sample(Sample):
    """``image`` as it is shown; ``mirrored`` says whether it is its mirror image."""

    mirrored: bool


class {name}(Task):
    """Say whether a picture was mirrored: yes or no."""

    answer_kind = "yes or no"
    columns: ClassVar[Mapping[str, str]] = {{"score": "accuracy"}}
    rationale = "I look for writing and hands."

    def sample(self, sample: Sample, rng: np.random.Generator) -> {name}Sample:
        """Mirror the picture, or not."""
        mirrored = bool(rng.integers(2))
        return {name}Sample(sample.id, ImageOps.mirror(sample.image) if mirrored else sample.image, mirrored, quarantined=sample.quarantined)

    def messages(self, sample: {name}Sample, frame: BoxFrame) -> Content:
        """The picture, then what is asked."""
        return (sample.image, "\\nIs this a mirror image? First think inside <think></think>, then give only yes or no inside <answer></answer>.")

    def write_answer(self, sample: {name}Sample, frame: BoxFrame) -> str:
        """The right word."""
        return "yes" if sample.mirrored else "no"

    def read_answer(self, text: str, sample: {name}Sample, frame: BoxFrame) -> bool | None:
        """Whether the answer is yes; None where it is neither."""
        return {{"yes": True, "no": False}}.get(text.strip().lower().rstrip("."))

    def score_answer(self, answer: bool, sample: {name}Sample) -> float:
        """Exact match."""
        return float(answer == sample.mirrored)

    def blind_answers(self, sample: {name}Sample) -> dict[str, bool]:
        """The same answer always."""
        return {{"always yes": True, "always no": False}}
'''
_TASK_TEST = """
from {module} import {name}

from locus_lightning.testing import check_task


def test_it_keeps_the_contract():
    check_task({name}())
"""

_BACKBONE = '''
"""{name}: a family of models and how it writes boxes."""

from __future__ import annotations

from torch import Tensor

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.boxes import BoxFrame, image_box, raster
from locus_lightning.types import Prompt, Size


class {name}(HFBackbone):
    """The family of ``model_types``; every image is stretched to the tower's size, boxes are thousandths of the image.

    Args:
        kwargs: see :class:`HFBackbone`.
    """

    model_types = ("llava",)  # what transformers calls the family: config.json's model_type
    convention = Convention("0-1000", "how the model writes boxes by itself", False, "fixed size")
    images_in_text = True  # this chat template moves all images to the front, so that placeholders are written into the text

    def prepare_processor(self) -> None:
        """Stretch, do not crop: the frame below says so."""
        side = self.hf.config.vision_config.image_size
        self.processor.image_processor.do_center_crop = False
        self.processor.image_processor.size = {{"height": side, "width": side}}

    def frame(self, size: Size) -> BoxFrame:
        """Thousandths of the image."""
        return BoxFrame.thousandths(size)

    def image_cells(self, prompt: Prompt, size: Size) -> Tensor:
        """A grid over the image."""
        side = self.hf.config.vision_config.image_size // self.hf.config.vision_config.patch_size
        return raster(side, side, image_box(size))
'''
_BACKBONE_TEST = '''
from {module} import {name}

from locus_lightning.testing import check_backbone


def test_it_keeps_the_contract():
    """On a random toy of the architecture; a folder with real weights does as well."""
    check_backbone({name}("toy:llava", dtype="float64"))
'''

TEMPLATES = {
    "reward": (_REWARD, _REWARD_TEST),
    "cue-sampler": (_SAMPLER, _SAMPLER_TEST),
    "task": (_TASK, _TASK_TEST),
    "backbone": (_BACKBONE, _BACKBONE_TEST),
}
