"""Cue samples from any COCO-format annotation file and its image folder (PAPER section 4)."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from locus_lightning.cue_samplers.base import CueSampler, crop_cue
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.data.filters import second_match, texture
from locus_lightning.data.source import CueDataset, CueKey, CueSource, Split
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.geometry import pairwise_iou
from locus_lightning.types import Box, CueSample, CueWindow, IntBox, SceneObject, Size, SizeBin

log = logging.getLogger(__name__)

_TOLERANCE = 1.0
"""Pixels that an annotated box may reach beyond its image; COCO's own files do by rounding."""


@dataclass(frozen=True)
class CocoImage:
    """An image of an annotation file with its objects (crowds left out)."""

    id: int
    path: str
    size: Size
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class CueEntry:
    """One cue of the index: which image, which window."""

    path: str
    size: Size
    image_id: int
    window: CueWindow


class CocoCues(CueSource):
    """Object regions of annotated photos as cue samples.

    One window an (image, annotation); of windows of one image that overlap by IoU > 0.9 one is kept; crowds are dropped;
    the size mix is the cue sampler's; train and validation are split by image, unless validation has files of its own.

    Args:
        annotations: COCO-format JSON with ``images``, ``annotations`` and (optional) ``categories``.
        images: folder that the file names are relative to.
        val_annotations: annotation file of the validation images; null splits ``annotations`` by image.
        val_images: folder of the validation images; null: ``images``.
        train_size: cues to keep for training (paper: 99,500); fewer where the files hold fewer.
        val_size: cues to keep for validation (paper: 500).
        val_fraction: share of the images set aside for validation when one file is split.
        per_image: most cues of one image.
        exclude: file with one image id a line that is left out, such as the RefCOCO test images that lie in train2014.
        bad_boxes: a box that reaches beyond its image by over 1 px, or has no area: ``refuse`` the file, or ``skip`` and count.
        min_texture: least standard deviation of a cue's grey levels (0-255); 0 takes any. A cue under it is replaced by the next.
        max_match: most that a cue may match its image elsewhere (normalised cross-correlation, such as 0.9); 1 takes any.
        cue_sampler: which windows, and the mix of sizes.
    """

    def __init__(
        self,
        annotations: str,
        images: str,
        val_annotations: str | None = None,
        val_images: str | None = None,
        train_size: int = 99_500,
        val_size: int = 500,
        val_fraction: float = 0.02,
        per_image: int = 8,
        exclude: str | None = None,
        bad_boxes: Literal["refuse", "skip"] = "refuse",
        min_texture: float = 0.0,
        max_match: float = 1.0,
        cue_sampler: CueSampler | None = None,
    ) -> None:
        if min(train_size, val_size, per_image) < 1 or not 0 < val_fraction < 1:
            raise ConfigError(
                f"CocoCues: train_size {train_size}, val_size {val_size} and per_image {per_image} are at least 1, val_fraction {val_fraction} between 0 and 1."
            )
        self.files: dict[Split, tuple[Path, Path]] = {"train": (Path(annotations).expanduser(), Path(images).expanduser())}
        if val_annotations:
            self.files["val"] = (Path(val_annotations).expanduser(), Path(val_images or images).expanduser())
        self.sizes: dict[Split, int] = {"train": train_size, "val": val_size}
        self.val_fraction, self.per_image, self.bad_boxes = val_fraction, per_image, bad_boxes
        self.exclude = Path(exclude).expanduser() if exclude else None
        self.min_texture, self.max_match = min_texture, max_match
        self.cue_sampler = cue_sampler or ObjectCues()
        self.left_out: Counter[str] = Counter()
        self.missing: list[str] = []
        self._images: dict[Split, list[CocoImage]] = {}
        self._counts: dict[str, object] = {}
        self._found: dict[SizeBin, int] = {}

    def check(self) -> None:
        """Read and validate the annotation files, once. No image is opened."""
        if self._images:
            return
        excluded = self._excluded()
        for split, (file, folder) in self.files.items():
            images = read_coco(file, folder, self.bad_boxes, self.left_out)
            self.left_out["excluded images"] += sum(image.id in excluded for image in images)
            present = {str(p) for p in folder.iterdir()} if folder.is_dir() else set()
            nested = any(Path(image.path).parent != folder for image in images)
            kept = [i for i in images if i.id not in excluded]
            lost = [i for i in kept if not (Path(i.path).is_file() if nested else i.path in present)]
            self.missing += [image.path for image in lost]
            gone = {image.id for image in lost}
            self._images[split] = [image for image in kept if image.id not in gone]
            if not self._images[split]:
                raise DataError(f"none of the {len(images)} images of {file} is in the folder {folder}; check data.source images.")
        if self.missing:
            self.left_out["missing images"] = len(self.missing)
            log.warning("%d annotated images are not on disk and are left out, such as %s", len(self.missing), self.missing[0])

    def dataset(self, split: Split, seed: int) -> CueDataset:
        """See :meth:`CueSource.dataset`."""
        self.check()
        images = self._images_of(split, seed)
        entries = self.index(images, self.sizes[split], seed)
        if not entries:
            raise DataError(
                f"{self.files.get(split, self.files['train'])[0]} gives no {split} cues in the mix {self.cue_sampler.mix} with sides of at "
                f"least {self.cue_sampler.min_side} px (found: {self._found or 'none'}); change cue_sampler.mix or min_side."
            )
        bins = dict(Counter(e.window.size_bin for e in entries))
        self._counts[split] = {"cues": len(entries), "images": len({e.image_id for e in entries}), "bins": bins}
        log.info("%s: %d cues of %d images, %s", split, len(entries), len({e.image_id for e in entries}), bins)
        return _CocoCueSet(entries, self.min_texture, self.max_match)

    def summary(self) -> dict[str, object]:
        """Counts of cues and of what was left out."""
        return {**self._counts, "left_out": dict(self.left_out), "missing_images": self.missing[:20]}

    def index(self, images: Iterable[CocoImage], size: int, seed: int) -> list[CueEntry]:
        """Windows of all images, without near-duplicates, at most ``per_image`` each, then ``size`` of them in the mix."""
        by_bin: dict[SizeBin, list[CueEntry]] = defaultdict(list)
        for image in images:
            rng = np.random.default_rng([seed, image.id])
            found = self.cue_sampler.sample(image.size, image.objects, rng) or []
            windows = _without_duplicates(found)
            self.left_out["near-duplicate windows"] += len(found) - len(windows)
            self.left_out["windows over per_image"] += max(0, len(windows) - self.per_image)
            for i in sorted(rng.permutation(len(windows))[: self.per_image]):
                by_bin[windows[i].size_bin].append(CueEntry(image.path, image.size, image.id, windows[i]))
        self._found = {name: len(entries) for name, entries in by_bin.items()}
        return _in_mix(by_bin, self.cue_sampler.mix, size, np.random.default_rng([seed, size]))

    def _images_of(self, split: Split, seed: int) -> list[CocoImage]:
        if "val" in self.files:
            return self._images[split]
        images = self._images["train"]
        if len(images) < 2:
            raise DataError(f"{self.files['train'][0]} has {len(images)} usable image; give at least 2, or val_annotations.")
        order = np.random.default_rng(seed).permutation(len(images))
        held_out = set(order[: max(1, round(len(images) * self.val_fraction))].tolist())
        return [image for i, image in enumerate(images) if (i in held_out) == (split == "val")]

    def _excluded(self) -> set[int]:
        if self.exclude is None:
            return set()
        try:
            return {int(line) for line in self.exclude.read_text().split()}
        except (OSError, ValueError) as cause:
            raise DataError(f"data.source exclude {self.exclude} cannot be read as one image id a line ({cause}).") from cause


class _CocoCueSet(CueDataset):
    def __init__(self, entries: Sequence[CueEntry], min_texture: float, max_match: float) -> None:
        self.entries, self.min_texture, self.max_match = list(entries), min_texture, max_match

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: CueKey) -> CueSample:
        bad: list[tuple[str, str]] = []
        for step in range(len(self)):
            entry = self.entries[(key[1] + step) % len(self)]
            if any(path == entry.path for path, _ in bad):
                continue
            try:
                image = _open(entry)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as cause:
                bad.append((entry.path, str(cause)))
                continue
            if not self._worth_asking(image, entry.window.box):
                continue
            x1, y1, x2, y2 = entry.window.box
            name = f"{entry.image_id}-{entry.window.object_id}"
            box = (float(x1), float(y1), float(x2), float(y2))
            return CueSample(name, image, crop_cue(image, entry.window), box, tuple(bad))
        if not bad:
            raise DataError(f"no cue passes min_texture {self.min_texture} and max_match {self.max_match}; relax data.source.")
        raise DataError(f"none of the {len(bad)} images of this split can be opened, such as {bad[0][0]} ({bad[0][1]}).")

    def _worth_asking(self, image: Image.Image, window: IntBox) -> bool:
        if self.min_texture > 0 and texture(image, window) < self.min_texture:
            return False
        return self.max_match >= 1 or second_match(image, window) <= self.max_match


def _open(entry: CueEntry) -> Image.Image:
    with Image.open(entry.path) as file:
        image = file.convert("RGB")
    if image.size != entry.size:
        raise ValueError(f"the file is {image.width}x{image.height} px, its annotation says {entry.size[0]}x{entry.size[1]}")
    return image


def read_coco(path: Path, folder: Path, bad_boxes: Literal["refuse", "skip"], left_out: Counter[str]) -> list[CocoImage]:
    """Images with their objects from a COCO-format file; ``left_out`` counts what is not kept.

    Raises:
        DataError: no file, no JSON, not COCO's layout, or a bad box under ``refuse``.
    """
    if not path.is_file():
        raise DataError(f"the annotation file {path} does not exist; set data.source annotations to a COCO-format JSON.")
    if not folder.is_dir():
        raise DataError(f"the image folder {folder} does not exist; set data.source images to the folder of {path.name}'s file names.")
    try:
        content = json.loads(path.read_bytes())
        names = {c["id"]: str(c["name"]) for c in content.get("categories", [])}
        sizes = {i["id"]: (i["file_name"], (int(i["width"]), int(i["height"]))) for i in content["images"]}
        annotations = content["annotations"]
        objects: dict[int, list[SceneObject]] = defaultdict(list)
        for annotation in annotations:
            _add(annotation, sizes, names, objects, path, bad_boxes, left_out)
    except json.JSONDecodeError as cause:
        raise DataError(f"{path} is not JSON (line {cause.lineno}: {cause.msg}).") from cause
    except (KeyError, TypeError, AttributeError, ValueError) as cause:
        raise DataError(
            f"{path} is not in COCO's detection format: {type(cause).__name__} {cause}; it needs images and annotations lists."
        ) from cause
    return [CocoImage(i, str(folder / name), size, tuple(objects[i])) for i, (name, size) in sizes.items() if objects[i]]


def _add(
    annotation: dict[str, Any],
    sizes: dict[int, tuple[str, Size]],
    names: dict[int, str],
    objects: dict[int, list[SceneObject]],
    path: Path,
    bad_boxes: str,
    left_out: Counter[str],
) -> None:
    """File one annotation under its image, or count why not."""
    if annotation.get("iscrowd"):
        left_out["crowds"] += 1
        return
    if annotation["image_id"] not in sizes:
        left_out["annotations without an image"] += 1
        return
    x, y, w, h = (float(v) for v in annotation["bbox"])
    box: Box = (x, y, x + w, y + h)
    width, height = sizes[annotation["image_id"]][1]
    inside = min(x, y) >= -_TOLERANCE and box[2] <= width + _TOLERANCE and box[3] <= height + _TOLERANCE
    if not (inside and w > 0 and h > 0):
        if bad_boxes == "refuse":
            raise DataError(
                f"{path}: annotation {annotation['id']} has bbox {annotation['bbox']} in an image of {width}x{height} px; "
                "correct it, or set data.source bad_boxes to skip."
            )
        left_out["bad boxes"] += 1
        return
    label = names.get(annotation.get("category_id", -1), "")
    objects[annotation["image_id"]].append(SceneObject(box, label, int(annotation["id"])))


def _without_duplicates(windows: Sequence[CueWindow]) -> list[CueWindow]:
    """Keep the first of windows that overlap by IoU > 0.9 (our decision 6)."""
    if len(windows) < 2:
        return list(windows)
    boxes: list[Box] = [(float(w.box[0]), float(w.box[1]), float(w.box[2]), float(w.box[3])) for w in windows]
    close = pairwise_iou(boxes, boxes) > 0.9
    kept: list[int] = []
    for i in range(len(windows)):
        if not close[i, kept].any():
            kept.append(i)
    return [windows[i] for i in kept]


def _in_mix(by_bin: dict[SizeBin, list[CueEntry]], mix: dict[SizeBin, float], size: int, rng: np.random.Generator) -> list[CueEntry]:
    """At most ``size`` entries in the shares of ``mix``; the scarcest bin bounds the whole."""
    bound = min([size, *(int(len(by_bin[name]) / share) for name, share in mix.items())])
    chosen: list[CueEntry] = []
    for name, share in mix.items():
        found = by_bin[name]
        picked = rng.permutation(len(found))[: round(bound * share)]
        chosen += [found[i] for i in sorted(picked)]
    return sorted(chosen, key=lambda e: (e.image_id, e.window.object_id))
