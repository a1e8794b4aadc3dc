"""COCO's ``bbox``: the corner and the size of a box in pixels, held against its image and against other tools' forms."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from locus_lightning.errors import DataError
from locus_lightning.types import Box, Size

_TOLERANCE = 1.0
"""Pixels that an annotated box may reach beyond its image; COCO's own files do by rounding."""


def _corners(bbox: list[float | None] | None) -> Box | None:
    """The four numbers of a box, or None where there are not four finite ones."""
    if bbox is None or len(bbox) != 4:
        return None
    a, b, c, d = (math.nan if value is None else value for value in bbox)
    return (a, b, c, d) if all(map(math.isfinite, (a, b, c, d))) else None


def _inside(box: Box, size: Size) -> bool:
    x1, y1, x2, y2 = box
    return min(x1, y1) >= -_TOLERANCE and x2 <= size[0] + _TOLERANCE and y2 <= size[1] + _TOLERANCE and x2 > x1 and y2 > y1


def box_of(bbox: list[float | None] | None, size: Size, forms: Counter[str]) -> Box | None:
    """The box as corners, or None where it is bad. ``forms`` counts the readings of four numbers that are possible."""
    if (corners := _corners(bbox)) is None:
        return None
    x, y, w, h = corners
    box = (x, y, x + w, y + h)
    good = w > 0 and h > 0 and _inside(box, size)
    forms["boxes"] += 1
    forms["sizes"] += good
    forms["corners"] += _inside(corners, size)
    forms["shares"] += max(corners) <= 1
    return box if good else None


def about_bad(bbox: list[float | None] | None, object_id: int, size: Size) -> str:
    """What is wrong with a box, for a message."""
    shown = [int(v) if v is not None and v == v and v == int(v) else v for v in bbox or []]
    return f"annotation {object_id} has bbox {shown} in an image of {size[0]}x{size[1]} px"


def refuse_other_forms(forms: Counter[str], path: Path) -> None:
    """Corners and shares of the image are not COCO's form, and would pass for small boxes until few or none are left.

    Raises:
        DataError: every box is valid as two corners and some are not valid as corner and size, or no number of any box is above 1.
    """
    total, as_sizes = forms["boxes"], forms["sizes"]
    if total and forms["shares"] == total:
        raise DataError(
            f"{path}: no number of any bbox is above 1, so they look like shares of the image; COCO's are x, y, width, height in pixels."
        )
    if as_sizes < total == forms["corners"]:
        raise DataError(
            f"{path}: {total - as_sizes} of {total} boxes are not valid as x, y, width, height and all are as x1, y1, x2, y2; "
            "convert each bbox to COCO's x, y, width, height."
        )
