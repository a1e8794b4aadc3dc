"""Which parameters belong to an embedding or the head."""

from __future__ import annotations

from torch import nn


def mark_embedding(parameter: nn.Parameter) -> None:
    """Note that a parameter belongs to an embedding or the head, which some optimisers treat apart (see :func:`is_embedding`)."""
    parameter._locus_embedding = True  # type: ignore[attr-defined]


def is_embedding(parameter: nn.Parameter) -> bool:
    """Whether :func:`mark_embedding` noted this parameter."""
    return getattr(parameter, "_locus_embedding", False)
