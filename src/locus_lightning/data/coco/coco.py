"""Cue samples from any COCO-format annotation file and its image folder (PAPER section 4)."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from locus_lightning.cue_samplers.base import CueSampler
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.data.coco.annotations import CocoImage, counted, read_coco
from locus_lightning.data.coco.index import CueEntry, CueSet, in_mix, open_file, windows_of
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
        exclude: A file with one image id a line; these images are left out, such as the RefCOCO test images that lie in train2014.
        bad_boxes: What happens to a box that reaches beyond its image by over 1 px or has no area: ``skip`` and count it, or ``refuse``
            the file. COCO's own files hold three such boxes.
        min_texture: The smallest standard deviation of a cue's grey levels (0-255); 0 takes any. A cue below it is replaced by the
            next.
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
            kept = [i for i in images if i.id not in excluded]
            lost = [i for i in kept if not i.on_disk]
            self.missing += [image.path for image in lost]
            self._images[split] = [image for image in kept if image.on_disk]
            if not self._images[split]:
                raise DataError(
                    f"none of the {len(images)} images of {file} that have boxes is in the folder {folder}{_tried(lost)} "
                    f"(left out: {counted(self.left_out)}); check data.source images."
                )
        self._keep_validation_apart()
        if self.left_out["bad boxes"]:
            log.warning("%d boxes have no area or reach beyond their image and are left out", self.left_out["bad boxes"])
        if self.missing:
            self.left_out["missing images"] = len(self.missing)
            log.warning("%d annotated images are not on disk and are left out, such as %s", len(self.missing), self.missing[0])

    def _keep_validation_apart(self) -> None:
        """Leave the pictures of the validation file out of training."""
        if "val" not in self._images:
            return
        held_out = {os.path.realpath(image.path) for image in self._images["val"]}
        kept = [image for image in self._images["train"] if os.path.realpath(image.path) not in held_out]
        self.left_out["training images that are also in validation"] += len(self._images["train"]) - len(kept)
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
        entries = self.index(images, self.sizes[split], seed)
        if not entries:
            raise DataError(
                f"{self.files.get(split, self.files['train'])[0]} gives no {split} cues in the mix {self.cue_sampler.mix} with sides of at "
                f"least {self.cue_sampler.min_side} px (found: {self._found or 'none'}; left out: {counted(self.left_out)}); "
                "change cue_sampler.mix or min_side."
            )
        bins = dict(Counter(e.window.size_bin for e in entries))
        self._counts[split] = {"cues": len(entries), "images": len({e.image_id for e in entries}), "bins": bins}
        log.info("%s: %d cues of %d images, %s", split, len(entries), len({e.image_id for e in entries}), bins)
        return CueSet(entries, self.cue_sampler.cue, open_file, self.min_texture, self.max_match)

    def summary(self) -> dict[str, object]:
        """Counts of cues and of what was left out."""
        return {**self._counts, "left_out": dict(self.left_out), "missing_images": self.missing[:20]}

    def index(self, images: Iterable[CocoImage], size: int, seed: int) -> list[CueEntry]:
        """Windows of all images, then ``size`` of them in the mix."""
        by_bin = windows_of(images, self.cue_sampler, self.per_image, seed, self.left_out)
        self._found = {name: len(entries) for name, entries in by_bin.items()}
        return in_mix(by_bin, self.cue_sampler.mix, size, seed)

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

    def _excluded(self) -> set[int]:
        if self.exclude is None:
            return set()
        try:
            return {int(line) for line in self.exclude.read_text().split()}
        except (OSError, ValueError) as cause:
            raise DataError(f"data.source exclude {self.exclude} cannot be read as one image id a line ({cause}).") from cause


def _tried(lost: list[CocoImage]) -> str:
    return f"; no file is at {lost[0].path}" if lost else ""
