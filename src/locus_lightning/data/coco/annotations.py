"""COCO-format annotation files: read once, checked entry by entry, polygons never held in memory."""

from __future__ import annotations

import gzip
import json
import mmap
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import msgspec

from locus_lightning.data.coco.bbox import about_bad, box_of, refuse_other_forms
from locus_lightning.data.images import Exif, is_turned, picture_size
from locus_lightning.errors import DataError
from locus_lightning.types import SceneObject, Size

_LARGEST_ID = 2**63 - 1
"""Ids are stored as 64-bit integers in a corpus."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of an annotation file with its objects (crowds left out)."""

    id: int
    path: str
    size: Size
    objects: tuple[SceneObject, ...]
    on_disk: bool = True


_Number = int | float | str | None


class _Image(msgspec.Struct):
    id: int | float | str
    file_name: str | None = None
    coco_url: str | None = None
    width: _Number = None
    height: _Number = None


class _Annotation(msgspec.Struct):
    image_id: int | float | str
    id: _Number = None
    bbox: list[float | None] | None = None
    category_id: _Number = None
    iscrowd: bool | int | float | None = None


class _Category(msgspec.Struct):
    id: _Number
    name: str


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] | None = None


def read_coco(
    path: Path, folder: Path, bad_boxes: Literal["refuse", "skip"], left_out: Counter[str], exif: Exif = "skip"
) -> list[CocoImage]:
    """Images with their objects from a COCO-format file, plain or gzipped; ``left_out`` counts what is not kept.

    An image that is listed twice is merged. An annotation without an id of its own gets a running number. Where a size is not given, the picture's
    own is taken. All of this is our choice; COCO's own files need none of it.

    Raises:
        DataError: no file, no JSON, not COCO's layout, one id for two different images, boxes in another form than COCO's, or a bad box under
            ``refuse``.
    """
    if not path.is_file():
        raise DataError(f"the annotation file {path} does not exist; set data.source annotations to a COCO-format JSON.")
    if not folder.is_dir():
        raise DataError(f"the image folder {folder} does not exist; set data.source images to the folder of {path.name}'s file names.")
    content = _decode(path)
    names = {str(_whole(c.id)): c.name for c in content.categories or []}
    images, same = _images(content.images, path, folder, left_out, exif)
    number = _running_number(content.annotations)
    objects: dict[int, list[SceneObject]] = defaultdict(list)
    forms: Counter[str] = Counter()
    bad: list[str] = []
    bad_of: Counter[int] = Counter()
    for annotation in content.annotations:
        image = images[key] if (key := same.get(_whole(annotation.image_id))) is not None else None
        object_id = number(annotation)
        if annotation.iscrowd:
            left_out["crowds"] += 1
        elif image is None:
            left_out["annotations without an image"] += 1
        elif (box := box_of(annotation.bbox, image.size, forms)) is None:
            bad_of[image.id] += 1
            if not bad:
                bad.append(about_bad(annotation.bbox, object_id, image.size))
        else:
            objects[image.id].append(SceneObject(box, names.get(str(_whole(annotation.category_id)), ""), object_id, image.id))
    refuse_other_forms(forms, path)
    _count_bad(bad_of, images, left_out)
    if bad and bad_boxes == "refuse":
        raise DataError(f"{path}: {bad[0]}; correct it, or set data.source bad_boxes to skip.")
    return [replace(i, objects=tuple(objects[i.id])) for i in images.values() if i.id in objects]


def _count_bad(bad_of: Mapping[int, int], images: Mapping[int, CocoImage], left_out: Counter[str]) -> None:
    """Count bad boxes; those of pictures that are shown turned were probably drawn on the picture as shown, and are counted apart."""
    for number, bad in bad_of.items():
        turned = images[number].on_disk and is_turned(images[number].path)
        left_out["bad boxes in pictures that EXIF turns" if turned else "bad boxes"] += bad


def counted(left_out: Mapping[str, int]) -> str:
    """What was left out, in words."""
    return ", ".join(f"{number:,} {name}" for name, number in sorted(left_out.items()) if number) or "nothing"


# ---- images --------------------------------------------------------------------------------------------------------------


def _images(
    rows: Sequence[_Image], path: Path, folder: Path, left_out: Counter[str], exif: Exif
) -> tuple[dict[int, CocoImage], dict[int | str, int]]:
    """Images by number, and the number of each id of the file. Rows of one picture share a number."""
    find = _finder(folder)
    images: dict[int, CocoImage] = {}
    number_of: dict[int | str, int] = {}
    by_path: dict[str, int] = {}
    spare = _above(_whole(row.id) for row in rows)
    for row in rows:
        name = row.file_name or (row.coco_url or "").rsplit("/", 1)[-1]
        if not name:
            raise DataError(f"{path}: image {row.id} has neither file_name nor coco_url; give each image the name of its file.")
        key, (picture, on_disk) = _whole(row.id), find(name)
        known = number_of.get(key, by_path.get(picture))
        before = None if known is None else images[known]
        size = _size_of(row, picture, exif)
        if before is None:
            number = key if isinstance(key, int) else next(spare)
            if abs(number) > _LARGEST_ID:
                raise DataError(f"{path}: the image id {row.id} does not fit into 64 bits; give smaller ids.")
            images[number] = CocoImage(number, picture, size, (), on_disk)
        elif (before.path, before.size) == (picture, size):
            number = before.id
            left_out["images listed twice"] += 1
        else:
            raise DataError(
                f"{path}: image id {row.id} stands for {before.path} ({before.size[0]}x{before.size[1]} px) and for {picture} "
                f"({size[0]}x{size[1]} px); give each image one id and one size."
            )
        number_of[key] = by_path[picture] = number
    return images, number_of


def _finder(folder: Path) -> Callable[[str], tuple[str, bool]]:
    """From a file name as annotated to a path, in the spelling under which the file is on disk, and whether it is there."""
    present = set(os.listdir(folder))

    def find(name: str) -> tuple[str, bool]:
        plain = os.path.join(folder, os.path.normpath(name))
        if name in present or os.path.isfile(plain):
            return plain, True
        slashes = os.path.normpath(name.replace("\\", "/"))
        for other in (slashes, unquote(slashes), unicodedata.normalize("NFC", slashes), unicodedata.normalize("NFD", slashes)):
            if os.path.isfile(os.path.join(folder, other)):
                return os.path.join(folder, other), True
        return plain, False

    return find


def _size_of(row: _Image, picture: str, exif: Exif) -> Size:
    """The annotated size; where it is not given, the size in the picture's header, or 0 x 0 if that cannot be read."""
    width, height = _whole(row.width), _whole(row.height)
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return picture_size(picture, exif)


# ---- numbers -------------------------------------------------------------------------------------------------------------


def _whole(value: _Number) -> int | str:
    """The number that is meant: 640 for ``640.0`` and ``"640"``; other values as text."""
    if isinstance(value, int):
        return value
    try:
        return int(value) if isinstance(value, str) else int(value) if value is not None and value == int(value) else str(value)
    except (ValueError, OverflowError):
        return str(value)


def _above(used_ids: Iterator[int | str]) -> Iterator[int]:
    """Numbers above all that are taken."""
    last = max((number for number in used_ids if isinstance(number, int) and number < _LARGEST_ID // 2), default=0)
    while True:
        last += 1
        yield last


def _running_number(annotations: Sequence[_Annotation]) -> Callable[[_Annotation], int]:
    """The number of an annotation: its own id the first time, else one above all ids of the file."""
    spare = _above(_whole(annotation.id) for annotation in annotations)
    used: set[int] = set()

    def number(annotation: _Annotation) -> int:
        own = _whole(annotation.id)
        if not isinstance(own, int) or own in used or abs(own) > _LARGEST_ID:
            return next(spare)
        used.add(own)
        return own

    return number


# ---- the file ------------------------------------------------------------------------------------------------------------


def _decode(path: Path) -> _File:
    try:
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                return _parse(gzip.decompress(path.read_bytes()))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _parse(content[:] if content[:3] == _BOM else content)
    except msgspec.ValidationError as cause:
        raise DataError(f"{path} is not in COCO's detection format: {cause}; it needs images and annotations lists.") from cause
    except (msgspec.DecodeError, ValueError, EOFError, gzip.BadGzipFile, RecursionError) as cause:  # an empty file cannot be mapped
        raise DataError(f"{path} is not JSON ({cause}).") from cause


def _parse(content: bytes | mmap.mmap) -> _File:
    if isinstance(content, bytes):
        content = content.removeprefix(_BOM)
    try:
        return msgspec.json.decode(content, type=_File)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:  # NaN and Infinity are not JSON, and Python writes them
        return msgspec.convert(json.loads(content[:]), type=_File)
