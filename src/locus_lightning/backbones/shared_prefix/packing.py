"""Laying prompts and completions out in rows: one packed row a group, or one row a completion.

Packed, a group is ``[prompt | c_1 | ... | c_G]``: a completion sees the prompt and itself, and its positions go on
from the prompt's end, so its log-probabilities are what they would be alone. The plain layout is the reference that
tests hold the packed one against, and the fallback of a family that cannot be packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from locus_lightning.backbones.shared_prefix.attention import attach_layout, packed_layout
from locus_lightning.types import Prompt

_PAD = -1


@dataclass(frozen=True)
class Rows:
    """Inputs of one forward pass over B prompts with G completions each.

    ids_RS      token ids, padding 0
    mask        packed: (R, 1, S, S), True where attention is allowed; padding sees itself only, so that no softmax is empty.
                Plain: (R, S), True where there are tokens; the model makes its own causal (or sliding) mask of it
    positions   (R, S), or (3, R, S) for multimodal rotary positions
    source_N    index into the flattened (R*S) hidden states of the state that predicts target n
    target_N    the id it predicts
    place_N     index into the flattened (B*G*T) result
    shape       (B, G, T)
    prompts     which prompt's features each row holds, in row order
    """

    ids_RS: Tensor
    mask: Tensor
    positions: Tensor
    source_N: Tensor
    target_N: Tensor
    place_N: Tensor
    shape: tuple[int, int, int]
    prompts: tuple[int, ...]


def lay_out(prompts: Sequence[Prompt], completions: Sequence[Sequence[Tensor]], *, share_prefix: bool) -> Rows:
    """Rows for B prompts whose completions are ragged: B rows when the prefix is shared, else B*G."""
    group = len(completions[0])
    longest = max((len(c) for cs in completions for c in cs), default=0)
    plan = (
        [(b, range(group)) for b in range(len(prompts))] if share_prefix else [(b, [g]) for b in range(len(prompts)) for g in range(group)]
    )
    rows = [_row(prompts[b], [completions[b][g] for g in gs]) for b, gs in plan]
    width = max(len(ids) for ids, _, _ in rows)
    axes, device = prompts[0].positions_P.shape[0], prompts[0].ids_P.device
    ids_RS = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    segments_RS = torch.full((len(rows), width), _PAD, dtype=torch.long, device=device)
    positions = torch.zeros(axes, len(rows), width, dtype=torch.long, device=device)
    sources, targets, places = [], [], []
    for r, ((b, gs), (ids, segments, where)) in enumerate(zip(plan, rows, strict=True)):
        ids_RS[r, : len(ids)], segments_RS[r, : len(ids)], positions[:, r, : len(ids)] = ids, segments, where
        last_of_prompt = len(prompts[b].ids_P) - 1
        start = last_of_prompt + 1
        for g in gs:
            completion = completions[b][g]
            if len(completion) == 0:
                continue
            steps = torch.arange(len(completion), device=device)
            sources.append(r * width + torch.where(steps == 0, last_of_prompt, start + steps - 1))
            targets.append(completion)
            places.append((b * group + g) * longest + steps)
            start += len(completion) - 1
    empty = torch.zeros(0, dtype=torch.long, device=device)
    mask = _allowed(segments_RS) if share_prefix else segments_RS != _PAD
    if share_prefix:
        bodies = [[max(0, len(c) - 1) for c in completions[b]] for b, _ in plan]
        attach_layout(mask, packed_layout([len(prompts[b].ids_P) for b, _ in plan], bodies, width, device))
    return Rows(
        ids_RS,
        mask,
        positions[0] if axes == 1 else positions,
        torch.cat(sources or [empty]),
        torch.cat(targets or [empty]),
        torch.cat(places or [empty]),
        (len(prompts), group, longest),
        tuple(b for b, _ in plan),
    )


def why_not(config: Any) -> str | None:
    """Why a model's prompts cannot be shared in packed rows, or None where they can.

    A packed row rests on attention that follows the mask it is given, and nothing else between positions.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None)
    if window and not getattr(text, "layer_types", None) and getattr(text, "use_sliding_window", True):
        return f"its attention has a sliding window of {window:,} positions"
    if kinds - {"full_attention"}:
        return f"it has layers of {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(text, "use_bidirectional_attention", None) or getattr(config, "use_bidirectional_attention", None):
        return "its image tokens attend both ways"
    return None


def _row(prompt: Prompt, completions: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, segments, positions) of one row; a completion's last token predicts nothing and is left out."""
    bodies = [c[:-1] for c in completions]
    ids = torch.cat([prompt.ids_P, *bodies])
    lengths = [len(prompt.ids_P), *(len(body) for body in bodies)]
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(ids.device)
    steps = [torch.arange(len(body), device=ids.device) + prompt.next_position for body in bodies]
    after = torch.cat([*steps, ids[:0]]).expand(prompt.positions_P.shape[0], -1)
    return ids, segments, torch.cat([prompt.positions_P, after], dim=1)


def _allowed(segments_RS: Tensor) -> Tensor:
    """(R, 1, S, S) bool: earlier or equal, and of the prompt (segment 0) or of one's own completion."""
    query, key = segments_RS[:, :, None], segments_RS[:, None, :]
    order = torch.arange(segments_RS.shape[1], device=segments_RS.device)
    earlier = order[None, :] <= order[:, None]
    visible = earlier & ((key == 0) | (key == query)) & (key != _PAD) & (query != _PAD)
    return (visible | torch.eye(len(order), dtype=torch.bool, device=visible.device))[:, None]


def left_padded(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts for generation: ids (B, P), mask (B, P) of 0/1, positions (B, P) or (3, B, P); padding on the left."""
    width = max(len(p.ids_P) for p in prompts)
    axes, device = prompts[0].positions_P.shape[0], prompts[0].ids_P.device
    ids_BP = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    mask_BP = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    positions = torch.zeros(axes, len(prompts), width, dtype=torch.long, device=device)
    for b, prompt in enumerate(prompts):
        start = width - len(prompt.ids_P)
        ids_BP[b, start:], mask_BP[b, start:], positions[:, b, start:] = prompt.ids_P, 1, prompt.positions_P
    return ids_BP, mask_BP, positions[0] if axes == 1 else positions
