"""Cue samples from any COCO-format annotation file and its image folder (PAPER section 4)."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from locus_lightning.cue_samplers.base import CueSampler
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.data.coco.annotations import CocoImage, counted, read_coco
from locus_lightning.data.coco.excluded import excluded_images
from locus_lightning.data.coco.index import CueEntry, CueSet, in_mix, open_file, windows_of
from locus_lightning.data.images import Exif
from locus_lightning.data.source import CueDataset, CueSource, Split
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.types import SizeBin

log = logging.getLogger(__name__)


class CocoCues(CueSource):
    """Object regions of annotated photos as cue samples.

    One window an (image, annotation); of windows of one image that overlap by IoU > 0.9 one is kept; crowds are dropped;
    the size mix is the cue sampler's; train and validation are split by image, unless validation has files of its own.

    Args:
        annotations: The COCO-format JSON with ``images``, ``annotations`` and (optional) ``categories``.
        images: The folder that the file names are relative to.
        val_annotations: The annotation file of the validation images; null splits ``annotations`` by image.
        val_images: The folder of the validation images; null is ``images``.
        train_size: The number of cues to keep for training (paper: 99,500); fewer where the files hold fewer.
        val_size: The number of cues to keep for validation (paper: 500).
        val_fraction: The share of the images that is set aside for validation when one file is split.
        per_image: The largest number of cues of one image.
        exclude: Images to leave out, such as RefCOCO's test images, which lie in COCO's train2014: a file with one image id a line, or
            RefCOCO's own files (``refs(unc).p``, parquet, JSON; a folder of them), whose rows outside the training split are taken.
        bad_boxes: What happens to a box that reaches beyond its image by over 1 px or has no area: ``skip`` and count it, or ``refuse``
            the file. COCO's own files hold three such boxes.
        min_texture: The smallest standard deviation of a cue's grey levels (0-255); 0 takes any. A cue below it is replaced by the
            next.
        exif: What happens to a picture that its EXIF orientation turns, where the annotated size does not settle whether its boxes were drawn
            on the picture as stored or as shown: ``skip`` leaves it out with a note, ``apply`` turns it, ``ignore`` takes it as stored.
        max_match: How well a cue may match its image elsewhere (normalised cross-correlation, such as 0.9); 1 takes any.
        cue_sampler: Which windows become cues, and the mix of sizes; null is ``ObjectCues``.
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
        bad_boxes: Literal["refuse", "skip"] = "skip",
        min_texture: float = 0.0,
        max_match: float = 1.0,
        exif: Exif = "skip",
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
        self.val_fraction, self.per_image, self.bad_boxes, self.exif = val_fraction, per_image, bad_boxes, exif
        self.exclude = Path(exclude).expanduser() if exclude else None
        self.min_texture, self.max_match = min_texture, max_match
        self.cue_sampler = cue_sampler or ObjectCues()
        self.left_out: Counter[str] = Counter()
        self.missing: list[str] = []
        self._images: dict[Split, list[CocoImage]] = {}
        self._counts: dict[str, object] = {}
        self._not_used: dict[Split, Counter[str]] = {}

    def check(self) -> None:
        """Read and validate the annotation files, once. No image is opened."""
        if self._images:
            return
        excluded = excluded_images(self.exclude) if self.exclude else set()
        for split, (file, folder) in self.files.items():
            images = read_coco(file, folder, self.bad_boxes, self.left_out, self.exif)
            kept = [i for i in images if i.id not in excluded]
            lost = [i for i in kept if not i.on_disk]
            self.left_out["objects of excluded images"] += sum(len(i.objects) for i in images if i.id in excluded)
            self.left_out["objects of missing images"] += sum(len(i.objects) for i in lost)
            self.missing += [image.path for image in lost]
            self._images[split] = [image for image in kept if image.on_disk]
            if not self._images[split]:
                raise DataError(
                    f"none of the {len(images)} images of {file} that have boxes is in the folder {folder}{_tried(lost)} "
                    f"(left out: {counted(self.left_out)}); check data.source images."
                )
        self._keep_validation_apart()
        for name, why in (
            ("bad boxes", ""),
            ("bad boxes in pictures that EXIF turns", ": their sizes are annotated as stored, not as shown"),
        ):
            if self.left_out[name]:
                log.warning("%d %s have no area or reach beyond their image and are left out%s", self.left_out[name], name, why)
        if self.missing:
            log.warning("%d annotated images are not on disk and are left out, such as %s", len(self.missing), self.missing[0])

    def _keep_validation_apart(self) -> None:
        """Leave the pictures of the validation file out of training."""
        if "val" not in self._images:
            return
        held_out = {os.path.realpath(image.path) for image in self._images["val"]}
        before = self._images["train"]
        kept = [image for image in before if os.path.realpath(image.path) not in held_out]
        lost = sum(len(image.objects) for image in before) - sum(len(image.objects) for image in kept)
        self.left_out["objects of training images that are also in validation"] += lost
        if not kept:
            raise DataError(
                f"every image of {self.files['train'][0]} is also in {self.files['val'][0]}; give validation images of its own, or leave out "
                "data.source val_annotations to split one file by image."
            )
        self._images["train"] = kept

    def dataset(self, split: Split, seed: int) -> CueDataset:
        """See :meth:`CueSource.dataset`."""
        self.check()
        images = self.images_of(split, seed)
        entries, counts, not_used = self.index(images, self.sizes[split], seed)
        self._not_used[split] = not_used
        if not entries:
            raise DataError(
                f"{self.files.get(split, self.files['train'])[0]} gives no {split} cues in the mix {self.cue_sampler.mix} with sides of at "
                f"least {self.cue_sampler.min_side} px (found: {counts or 'none'}; left out: {counted(self.left_out + not_used)}); "
                "change cue_sampler.mix or min_side."
            )
        bins = dict(Counter(e.window.size_bin for e in entries))
        self._counts[split] = {"cues": len(entries), "images": len({e.image_id for e in entries}), "bins": bins}
        log.info("%s: %d cues of %d images, %s", split, len(entries), len({e.image_id for e in entries}), bins)
        return CueSet(entries, self.cue_sampler.cue, partial(open_file, exif=self.exif), self.min_texture, self.max_match)

    def origin(self) -> dict[str, Any]:
        """See :meth:`CueSource.origin`."""
        return {"annotations": [str(file) for file, _ in self.files.values()], "exclude": str(self.exclude or "")}

    def summary(self) -> dict[str, object]:
        """Counts of cues and of what was left out."""
        left_out = sum(self._not_used.values(), self.left_out)
        return {**self._counts, "left_out": {k: n for k, n in left_out.items() if n}, "missing_images": self.missing[:20]}

    def index(self, images: Iterable[CocoImage], size: int, seed: int) -> tuple[list[CueEntry], dict[SizeBin, int], Counter[str]]:
        """Windows of all images, ``size`` of them in the mix; how many there are of each size, and what was not used."""
        not_used: Counter[str] = Counter()
        by_bin = windows_of(images, self.cue_sampler, self.per_image, seed, not_used, self.exif)
        numbers = {name: len(entries) for name, entries in by_bin.items()}
        return in_mix(by_bin, self.cue_sampler.mix, size, seed, not_used), numbers, not_used

    def images_of(self, split: Split, seed: int) -> list[CocoImage]:
        """Images of a split; of one file, a random ``val_fraction`` of its images is held out."""
        if "val" in self.files:
            return self._images[split]
        images = self._images["train"]
        if len(images) < 2:
            raise DataError(f"{self.files['train'][0]} has {len(images)} usable image; give at least 2, or val_annotations.")
        order = np.random.default_rng(seed).permutation(len(images))
        held_out = set(order[: max(1, round(len(images) * self.val_fraction))].tolist())
        return [image for i, image in enumerate(images) if (i in held_out) == (split == "val")]


def _tried(lost: list[CocoImage]) -> str:
    return f"; no file is at {lost[0].path}" if lost else ""
