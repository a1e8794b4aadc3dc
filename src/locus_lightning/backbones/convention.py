"""How a family of models writes boxes: what `locus backbones` tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Convention:
    """How a family of models speaks of boxes.

    Args:
        frame: what the numbers are.
        native: how its own training wrote a box; all forms are read, ``[x1, y1, x2, y2]`` is what the prompt asks for.
        confirmed: whether its authors say so; otherwise the frame is our choice, and reinforcement teaches it.
        budget: the settings that bound an image's tokens.
        packs: whether completions can share a prompt in a packed row.
    """

    frame: str
    native: str
    confirmed: bool
    budget: str
    packs: bool = True
