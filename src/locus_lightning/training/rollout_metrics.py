"""What a rollout batch looks like in numbers: the curves of ``rollout/`` and ``reward/``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import torch

from locus_lightning.boxes import box_area, iou, trivial_boxes
from locus_lightning.objectives.advantages import constant_groups
from locus_lightning.rewards.base import Reward
from locus_lightning.tasks.metrics import completion_iou, reaches_beyond
from locus_lightning.types import RolloutGroup


def rollout_statistics(groups: Sequence[RolloutGroup], rewards: Sequence[Reward], seconds: Mapping[str, float]) -> dict[str, float]:
    """Named means over a rollout batch; the names are the same whatever the completions are.

    ``seconds`` are the phases so far of this batch; the update's come from the batch before.
    """
    pairs = [(completion, group.sample) for group in groups for completion in group.completions]
    ious = torch.tensor([completion_iou(c, s) for c, s in pairs], dtype=torch.float32)
    lengths = [len(c.generation.ids_T) for c, _ in pairs if c.generation is not None]
    boxes = [(c.box, s) for c, s in pairs if c.box is not None]
    ratios = [box_area(box) / box_area(s.box) for box, s in boxes]
    spreads = [statistics.stdev(group.rewards) for group in groups]
    floors = [[iou(box, group.sample.box) for box in trivial_boxes(group.sample.image.size).values()] for group in groups]
    figures = {f"reward/{reward.name}": _mean([v for group in groups for v in group.scores[reward.name]]) for reward in rewards}
    figures |= {
        "reward/total": _mean([v for group in groups for v in group.rewards]),
        "reward/std_in_group": _mean(spreads),
        "reward/constant_groups": float(constant_groups(torch.tensor([g.rewards for g in groups], dtype=torch.float32)).float().mean()),
        "rollout/iou": float(ious.mean()),
        "rollout/acc0.5": float((ious >= 0.5).float().mean()),
        "rollout/floor": max(_mean(list(column)) for column in zip(*floors, strict=True)),
        "rollout/parse_rate": len(boxes) / len(pairs),
        "rollout/area_ratio": statistics.median(ratios) if ratios else 0.0,
        "rollout/beyond_image": _mean([float(reaches_beyond(box, s.image.size)) for box, s in boxes]),
        "rollout/length": _mean([float(n) for n in lengths]),
        "rollout/truncated": _mean([float(c.truncated) for c, _ in pairs]),
    }
    figures |= {f"rollout/iou_q{q}": float(torch.quantile(ious, q / 100)) for q in (10, 50, 90)}
    figures["speed/tokens_per_s"] = sum(lengths) / max(seconds.get("rollout", 0.0), 1e-9)
    if torch.cuda.is_available():
        figures["memory/peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
