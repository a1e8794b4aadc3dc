"""A rollout batch in numbers: the curves of ``rollout/`` and ``reward/``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch

from locus_lightning.objectives.advantages import zero_std_groups
from locus_lightning.rewards.base import Reward
from locus_lightning.tasks.base import Task
from locus_lightning.types import Question, RolloutGroup


def rollout_metrics(
    groups: Sequence[RolloutGroup], rewards: Sequence[Reward], task: Task, seconds: Mapping[str, float]
) -> dict[str, float]:
    """Named means over a rollout batch; the names are the same whatever the completions are. Plain questions have one figure of their own.

    Args:
        groups: scored.
        rewards: that scored them.
        task: adds its own figures.
        seconds: the phases so far of this batch; the update's come from the batch before.
    """
    failed = sum(bool(group.failed) for group in groups)
    groups = [group for group in groups if not group.failed] or groups  # their zeros are no scores
    completions = [completion for group in groups for completion in group.completions]
    samples = [group.sample for group in groups for _ in group.completions]
    lengths = [len(c.generation.ids_T) for c in completions if c.generation is not None]
    totals_BG = torch.tensor([group.rewards for group in groups], dtype=torch.float32)
    figures = {f"reward/{reward.name}": _mean([v for group in groups for v in group.scores[reward.name]]) for reward in rewards}
    figures |= {
        "reward/total": _mean([v for group in groups for v in group.rewards]),
        "reward/std_in_group": _mean([statistics.stdev(group.rewards) for group in groups]),
        "reward/frac_reward_zero_std": float(zero_std_groups(totals_BG).float().mean()),
    }
    pairs = list(zip(completions, samples, strict=True))
    if own := [(c, s) for c, s in pairs if not isinstance(s, Question)]:
        figures |= {f"rollout/{name}": value for name, value in task.rollout_figures(*zip(*own, strict=True)).items()}
    if asked := [c.score for c, s in pairs if isinstance(s, Question)]:
        figures["rollout/question_score"] = _mean(asked)
    figures |= {
        "rollout/length": _mean([float(n) for n in lengths]),
        "rollout/failed_groups": float(failed),
        "rollout/truncated": _mean([float(c.truncated) for c in completions]),
        "speed/tokens_per_s": sum(lengths) / max(seconds.get("rollout", 0.0), 1e-9),
    }
    if torch.cuda.is_available():
        figures["memory/peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
