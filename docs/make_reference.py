"""Write docs/configuration.md from signatures and docstrings: ``python docs/make_reference.py``; ``--check`` compares only."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import docstring_parser

from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.backbones.llava import LlavaBackbone
from locus_lightning.backbones.llava_onevision import LlavaOnevisionBackbone
from locus_lightning.backbones.qwen2_5_vl import Qwen2_5_VLBackbone
from locus_lightning.callbacks.checkpoints import Checkpoints
from locus_lightning.callbacks.downstream import DownstreamAccuracy
from locus_lightning.callbacks.pictures import CuePictures
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.cue_samplers.random_crop import RandomCropCues
from locus_lightning.cue_samplers.text_cue import TextCues
from locus_lightning.data.coco.coco import CocoCues
from locus_lightning.data.corpus.corpus import CorpusCues
from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.data.order import HardCues, LargeToSmall, Shuffled
from locus_lightning.data.synthetic.curriculum import SceneQA, Stage
from locus_lightning.data.synthetic.scenes import SceneCues
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.rewards.answer import AnswerReward
from locus_lightning.rewards.format import FormatReward
from locus_lightning.rewards.iou import IoUReward
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.rollout.vllm_rollout import VLLMRollout
from locus_lightning.tasks.cue_search import CuePrompt, CueSearch
from locus_lightning.tasks.mixture import TaskMixture
from locus_lightning.tasks.multi_cue import MultiCue
from locus_lightning.training.cold_start import ColdStart
from locus_lightning.training.grpo import LocusModule
from locus_lightning.training.optimizers import MuonAdamW
from locus_lightning.training.reference import ReferenceSync
from locus_lightning.training.sft import SupervisedModule

TARGET = Path(__file__).with_name("configuration.md")
SECTIONS: list[tuple[str, str, list[type]]] = [
    ("model", "`class_path: LocusModule` or `SupervisedModule`, with `init_args`.", [LocusModule, SupervisedModule]),
    ("model.init_args.backbone", "By class name; every family takes the arguments of `HFBackbone` too.",
     [HFBackbone, LlavaBackbone, LlavaOnevisionBackbone, Qwen2_5_VLBackbone]),
    ("model.init_args.backbone.init_args.lora", "", [LoRA]),
    ("model.init_args.task", "By class name; null is `CueSearch`.", [CueSearch, CuePrompt, MultiCue, TaskMixture]),
    ("model.init_args.rewards", "A list, by class name.", [IoUReward, FormatReward, AnswerReward]),
    ("model.init_args.objective", "", [GRPO]),
    ("model.init_args.reference_sync", "Null: the reference model stays as it was before training.", [ReferenceSync]),
    ("model.init_args.rollout, .sampling, .validation", "", [HFRollout, VLLMRollout, SamplingParams]),
    ("data", "", [CueDataModule]),
    ("data.source", "By class name.", [CocoCues, CorpusCues, SceneCues, SceneQA]),
    ("data.source.init_args.stages", "Of `SceneQA`: a list.", [Stage]),
    ("data.order", "By class name; null is `Shuffled`.", [Shuffled, LargeToSmall, HardCues]),
    ("data.source.init_args.cue_sampler", "By class name.", [ObjectCues, RandomCropCues, TextCues]),
    ("model.init_args.optimizer", "torch's by dotted path, such as `torch.optim.AdamW`; ours by class name.", [MuonAdamW]),
    ("trainer.callbacks", "By dotted path, such as `locus_lightning.callbacks.downstream.DownstreamAccuracy`; Lightning's own by class name.", [DownstreamAccuracy]),
    ("cold_start", "Beside `model` and `data`; null for none.", [ColdStart]),
    ("checkpoints, pictures", "Beside `model` and `data`.", [Checkpoints, CuePictures]),
]  # fmt: skip
HEAD = """# Configuration reference

Made from the code by `docs/make_reference.py`. `trainer` takes the arguments of Lightning's `Trainer`, with these defaults of our
own: `num_sanity_val_steps: -1` (validate before training), `check_val_every_n_epoch: null` (so `val_check_interval` counts
micro-steps), `log_every_n_steps: 1`, `enable_checkpointing: false` (`checkpoints` does it). `seed_everything` is 0.

A configuration that is not in the working directory is taken from the package (`locus configs` lists them, `locus configs copy llava.yaml` writes one
here). It may build on another: `base: tiny.yaml` takes that file, beside it or from the package, and puts this one's values over it, key by key. A list
replaces a list, and the settings of a class replace those of another class. Short forms: `checkpoint:` at the top, and settings of the backbone and the
model without `class_path` and `init_args`. A class may stand in a file of yours: `class_path: rewards.py:MyReward`.
"""


def arguments_of(cls: type) -> list[tuple[str, str, str, str]]:
    """(name, type, default, meaning) of what a class's constructor takes."""
    documented = {p.arg_name: p.description or "" for p in docstring_parser.parse(cls.__doc__ or "").params}
    rows = []
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD or name == "params":  # an optimiser is given the parameters
            continue
        default = "required" if parameter.default is inspect.Parameter.empty else show(parameter.default)
        rows.append((name, str(parameter.annotation).replace("|", "\\|"), default, " ".join(documented.get(name, "").split())))
    return rows


def show(value: Any) -> str:
    """A default as a YAML would hold it."""
    if callable(value) and not isinstance(value, type):
        source = inspect.getsource(value).strip().rstrip(",")
        return f"`{source.split('lambda p: ', 1)[-1]}`"
    return {None: "`null`", True: "`true`", False: "`false`"}.get(value if isinstance(value, bool | None) else "", f"`{value!r}`")


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for key, note, classes in SECTIONS:
        lines += [f"## {key}", "", *([note, ""] if note else [])]
        for cls in classes:
            summary = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
            lines += [f"### {cls.__name__}", "", summary, ""]
            rows = arguments_of(cls)
            if rows:
                lines += ["| argument | type | default | meaning |", "|---|---|---|---|"]
                lines += [f"| `{name}` | `{kind}` | {default} | {meaning} |" for name, kind, default, meaning in rows]
                lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0 if TARGET.read_text() == page() else "docs/configuration.md is not what the code says: run python docs/make_reference.py"
        )
    TARGET.write_text(page())
