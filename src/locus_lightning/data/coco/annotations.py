"""COCO-format annotation files: read once, checked entry by entry, polygons never held in memory."""

from __future__ import annotations

import mmap
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from locus_lightning.errors import DataError
from locus_lightning.types import Box, SceneObject, Size

_TOLERANCE = 1.0
"""Pixels that an annotated box may reach beyond its image; COCO's own files do by rounding."""


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of an annotation file with its objects (crowds left out)."""

    id: int
    path: str
    size: Size
    objects: tuple[SceneObject, ...]


class _Image(msgspec.Struct):
    id: int
    file_name: str
    width: int
    height: int


class _Annotation(msgspec.Struct):
    id: int
    image_id: int
    bbox: tuple[float, float, float, float]
    category_id: int = -1
    iscrowd: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] = []


def read_coco(path: Path, folder: Path, bad_boxes: Literal["refuse", "skip"], left_out: Counter[str]) -> list[CocoImage]:
    """Images with their objects from a COCO-format file; ``left_out`` counts what is not kept.

    Raises:
        DataError: no file, no JSON, not COCO's layout, or a bad box under ``refuse``.
    """
    if not path.is_file():
        raise DataError(f"the annotation file {path} does not exist; set data.source annotations to a COCO-format JSON.")
    if not folder.is_dir():
        raise DataError(f"the image folder {folder} does not exist; set data.source images to the folder of {path.name}'s file names.")
    content = _decode(path)
    names = {c.id: c.name for c in content.categories}
    sizes = {i.id: (i.width, i.height) for i in content.images}
    objects: dict[int, list[SceneObject]] = defaultdict(list)
    for annotation in content.annotations:
        if annotation.iscrowd:
            left_out["crowds"] += 1
        elif annotation.image_id not in sizes:
            left_out["annotations without an image"] += 1
        elif (box := _box(annotation, sizes[annotation.image_id], path, bad_boxes)) is None:
            left_out["bad boxes"] += 1
        else:
            objects[annotation.image_id].append(SceneObject(box, names.get(annotation.category_id, ""), annotation.id))
    above = str(folder / "x")[:-1]
    return [CocoImage(i.id, above + i.file_name, sizes[i.id], tuple(objects[i.id])) for i in content.images if i.id in objects]


def _decode(path: Path) -> _File:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return msgspec.json.decode(content, type=_File)
    except msgspec.ValidationError as cause:
        raise DataError(f"{path} is not in COCO's detection format: {cause}; it needs images and annotations lists.") from cause
    except (msgspec.DecodeError, ValueError) as cause:  # an empty file cannot be mapped
        raise DataError(f"{path} is not JSON ({cause}).") from cause


def _box(annotation: _Annotation, size: Size, path: Path, bad_boxes: str) -> Box | None:
    """The box as corners, or None where it is bad and bad ones are skipped."""
    x, y, w, h = annotation.bbox
    box: Box = (x, y, x + w, y + h)
    inside = min(x, y) >= -_TOLERANCE and box[2] <= size[0] + _TOLERANCE and box[3] <= size[1] + _TOLERANCE
    if inside and w > 0 and h > 0:
        return box
    if bad_boxes == "refuse":
        shown = [int(v) if v == int(v) else v for v in annotation.bbox]
        raise DataError(
            f"{path}: annotation {annotation.id} has bbox {shown} in an image of {size[0]}x{size[1]} px; "
            "correct it, or set data.source bad_boxes to skip."
        )
    return None
