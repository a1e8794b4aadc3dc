"""locus-lightning: reinforcement of fine-grained perception with visual cues (LOCUS, arXiv 2606.16586).

The names of :data:`__all__` can be imported from here; each is loaded when it is first asked for, so that ``import locus_lightning`` stays
light.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("locus-lightning")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"

_EXPORTS = {
    "LocusModule": "training.grpo",
    "SupervisedModule": "training.sft",
    "CueDataModule": "data.datamodule",
    "CocoCues": "data.coco.coco",
    "CorpusCues": "data.corpus.corpus",
    "SceneCues": "data.synthetic.scenes",
    "Task": "tasks.base",
    "CueSearch": "tasks.cue_search",
    "MultiCue": "tasks.multi_cue",
    "TaskMixture": "tasks.mixture",
    "Reward": "rewards.base",
    "IoUReward": "rewards.iou",
    "FormatReward": "rewards.format",
    "AnswerReward": "rewards.answer",
    "RemoteReward": "rewards.remote",
    "CueSampler": "cue_samplers.base",
    "ObjectCues": "cue_samplers.objects",
    "RandomCropCues": "cue_samplers.random_crop",
    "TextCues": "cue_samplers.text_cue",
    "Backbone": "backbones.base",
    "AutoBackbone": "backbones.auto",
    "LoRA": "backbones.adapters",
    "GRPO": "objectives.grpo",
    "SamplingParams": "rollout.base",
    "RolloutEngine": "rollout.base",
    "HFRollout": "rollout.hf",
    "VLLMRollout": "rollout.vllm_rollout",
    "Checkpoints": "callbacks.checkpoints",
    "CuePictures": "callbacks.pictures",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
