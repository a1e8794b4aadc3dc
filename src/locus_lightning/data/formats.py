"""Boxes as people have them, as one COCO-format file: YOLO folders, Pascal VOC XML, Label Studio JSON.

Roboflow, CVAT and most other tools export one of these, or COCO itself.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlparse
from xml.etree import ElementTree

import yaml
from PIL import Image

from locus_lightning.data.images import is_turned
from locus_lightning.errors import DataError
from locus_lightning.files import whole

log = logging.getLogger(__name__)

Format = Literal["auto", "coco", "yolo", "voc", "label-studio"]
_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}

Row = tuple[str, int, int, list[tuple[str, float, float, float, float]]]
"""A picture: its path in the picture folder, width, height, and boxes (label, x, y, width, height) in pixels."""


def format_of(annotations: Path) -> Format:
    """The format that lies there, by its files.

    Raises:
        DataError: it is not there, or of no known format.
    """
    if annotations.is_dir():
        if any(annotations.rglob("*.xml")):
            return "voc"
        if any(path.name not in ("classes.txt", "README.txt") for path in annotations.rglob("*.txt")):
            return "yolo"
        raise DataError(f"{annotations} holds neither .txt files (YOLO) nor .xml files (Pascal VOC).")
    if not annotations.is_file():
        raise DataError(f"{annotations} does not exist.")
    with annotations.open(encoding="utf-8-sig") as file:
        first = next((letter for letter in file.read(4096) if not letter.isspace()), "")
    return "label-studio" if first == "[" else "coco"


def coco_file(annotations: Path, images: Path, kind: Format, target: Path) -> Path:
    """The COCO-format file of some annotations: itself, or one that is written to ``target``.

    Raises:
        DataError: names the file and what is wrong with it.
    """
    kind = format_of(annotations) if kind == "auto" else kind
    if kind == "coco":
        return annotations
    rows = {"yolo": _yolo, "voc": _voc, "label-studio": _label_studio}[kind](annotations, images)
    content, left_out = _as_coco(rows, images)
    if not content["images"]:
        raise DataError(f"{annotations} ({kind}) gives no picture of {images}; {_counted(left_out)}.")
    with whole(target) as beside:
        beside.write_text(json.dumps(content), encoding="utf-8")
    log.info(
        "%s is %s: %d pictures and %d boxes of %d labels written as COCO to %s; %s.", annotations, kind, len(content["images"]),
        len(content["annotations"]), len(content["categories"]), target, _counted(left_out),
    )  # fmt: skip
    return target


def _counted(left_out: Counter[str]) -> str:
    return "left out: " + (", ".join(f"{number} {reason}" for reason, number in sorted(left_out.items())) or "nothing")


def _as_coco(rows: Iterator[Row | str], images: Path) -> tuple[dict[str, Any], Counter[str]]:
    """Rows as COCO's content, in order; a string among them is the reason why something was left out."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    labels: dict[str, int] = {}
    numbers: dict[str, int] = {}
    left_out: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, str):
            left_out[row] += 1
            continue
        name, width, height, boxes = row
        number = numbers.setdefault(name, len(numbers) + 1)
        if number > len(content["images"]):
            content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for label, x, y, w, h in boxes:
            box = [round(value, 3) for value in (x, y, w, h)]
            category = labels.setdefault(label, len(labels) + 1)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": box,
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    content["categories"] = [{"id": number, "name": label} for label, number in labels.items()]
    return content, left_out


def _size(path: Path) -> tuple[int, int] | None:
    """(width, height) as a viewer shows it; None where the file does not open."""
    try:
        with Image.open(path) as file:
            return (file.height, file.width) if is_turned(path) else (file.width, file.height)
    except Exception:  # decoders raise whatever they like
        return None


# ---- YOLO ------------------------------------------------------------------------------------------------------------------


def _yolo(folder: Path, images: Path) -> Iterator[Row | str]:
    """``class cx cy w h`` a line, shares of the picture; a polygon's line counts as the box around it."""
    names = _yolo_names(folder)
    by_stem = {
        path.relative_to(images).with_suffix("").as_posix(): path for path in sorted(images.rglob("*")) if path.suffix.lower() in _PICTURES
    }
    for label_file in sorted(folder.rglob("*.txt")):
        if label_file.name in ("classes.txt", "README.txt"):
            continue
        picture = by_stem.get(label_file.relative_to(folder).with_suffix("").as_posix()) or by_stem.get(label_file.stem)
        size = _size(picture) if picture else None
        if picture is None or size is None:
            yield "label files without a picture" if picture is None else "pictures that do not open"
            continue
        boxes = []
        for number, line in enumerate(label_file.read_text(encoding="utf-8-sig").splitlines(), 1):
            if not line.strip():
                continue
            try:
                kind, *values = (float(word) for word in line.split())
                if len(values) != 4 and (len(values) < 6 or len(values) % 2):
                    raise ValueError(f"{len(values)} numbers behind the class")
            except ValueError as cause:
                raise DataError(f"{label_file}, line {number}: {line.strip()[:60]!r} is not `class cx cy w h` ({cause}).") from cause
            if len(values) > 4:
                xs, ys = values[::2], values[1::2]
                values = [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]
            cx, cy, w, h = (value * side for value, side in zip(values, (*size, *size), strict=True))
            boxes.append((names.get(int(kind), f"class {int(kind)}"), cx - w / 2, cy - h / 2, w, h))
        yield picture.relative_to(images).as_posix(), *size, boxes


def _yolo_names(folder: Path) -> dict[int, str]:
    """Names of the classes, from data.yaml or classes.txt there or in a folder above."""
    for place in (folder, *list(folder.resolve().parents)[:2]):
        for file in sorted({*place.glob("data.y*ml"), *place.glob("dataset.y*ml")}):
            try:
                names = (yaml.safe_load(file.read_text(encoding="utf-8-sig")) or {}).get("names")
            except (yaml.YAMLError, AttributeError) as cause:
                raise DataError(f"{file} is not a YOLO data file with names ({cause}).") from cause
            if names:
                return {int(k): str(v) for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
        if (file := place / "classes.txt").is_file():
            return dict(enumerate(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()))
    return {}


# ---- Pascal VOC ------------------------------------------------------------------------------------------------------------


def _voc(folder: Path, images: Path) -> Iterator[Row | str]:
    """One XML file a picture. Its coordinates count from 1, and both ends belong to the box (VOC's own development kit)."""
    for file in sorted(folder.rglob("*.xml")):
        try:
            root = ElementTree.parse(file).getroot()
            name = Path(PurePosixPath(root.findtext("filename", "").replace("\\", "/")).name)
            boxes = []
            for thing in root.iter("object"):
                ends = [float(thing.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax")]
                x, y = max(0.0, ends[0] - 1), max(0.0, ends[1] - 1)
                boxes.append((thing.findtext("name", "") or "unnamed", x, y, ends[2] - x, ends[3] - y))
        except (ElementTree.ParseError, ValueError) as cause:
            raise DataError(f"{file} is not a Pascal VOC file: {cause}.") from cause
        picture = next(
            (path for path in (images / name, *(images / f"{file.stem}{end}" for end in sorted(_PICTURES))) if path.is_file()), None
        )
        size = _size(picture) if picture else None
        if picture is None or size is None:
            yield "XML files without a picture" if picture is None else "pictures that do not open"
            continue
        yield picture.relative_to(images).as_posix(), *size, boxes


# ---- Label Studio ----------------------------------------------------------------------------------------------------------


def _label_studio(path: Path, images: Path) -> Iterator[Row | str]:
    """Its JSON and JSON-MIN exports: rectangles in per cent of the picture. Turned rectangles are left out."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as cause:
        raise DataError(f"{path} is not JSON ({cause}).") from cause
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise DataError(f"{path} is not an export of Label Studio: it has to be a list of tasks.")
    for task in tasks:
        source = next(
            (
                value
                for value in (task.get("data") or task).values()
                if isinstance(value, str) and _named(value).suffix.lower() in _PICTURES
            ),
            "",
        )
        picture = _picture(_named(source), images) if source else None
        size = _size(picture) if picture else None
        if picture is None or size is None:
            yield "tasks without a picture" if picture is None else "pictures that do not open"
            continue
        boxes = []
        for value in _rectangles(task):
            if abs(float(value.get("rotation") or 0)) > 0.5:
                yield "turned rectangles"
                continue
            x, y, w, h = (float(value[key]) / 100 * side for key, side in zip(("x", "y", "width", "height"), (*size, *size), strict=True))
            boxes.append(((value.get("rectanglelabels") or ["unnamed"])[0], x, y, w, h))
        yield picture.relative_to(images).as_posix(), *size, boxes


def _rectangles(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rectangles of a task: of its first annotation that was not cancelled, or of a JSON-MIN row."""
    if "annotations" in task or "completions" in task:
        done = [one for one in task.get("annotations") or task.get("completions") or [] if not one.get("was_cancelled")]
        results = done[0].get("result", []) if done else []
        yield from (one["value"] for one in results if {"x", "y", "width", "height"} <= set(one.get("value", {})))
    else:
        lists = (value for value in task.values() if isinstance(value, list))
        yield from (one for rows in lists for one in rows if isinstance(one, dict) and {"x", "y", "width", "height"} <= set(one))


def _named(source: str) -> PurePosixPath:
    """The file that an address of Label Studio's names: an upload, a local file behind ``?d=``, or a cloud address."""
    parsed = urlparse(source)
    local = parse_qs(parsed.query).get("d")
    return PurePosixPath(unquote(local[0] if local else parsed.path))


def _picture(name: PurePosixPath, images: Path) -> Path | None:
    """The picture of that name: as it is, or without the eight signs that an upload puts before it."""
    candidates = [name.name, name.name.partition("-")[2]] if len(name.name.partition("-")[0]) == 8 else [name.name]
    inner = [PurePosixPath(*name.parts[i:]).as_posix().lstrip("/") for i in range(len(name.parts))]
    return next((images / one for one in (*inner, *candidates) if one and (images / one).is_file()), None)
