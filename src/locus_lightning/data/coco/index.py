"""An index of cues: which image, which window. Made from annotated images, drawn from by size mix, opened one by one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from locus_lightning.boxes import box_area, pairwise_iou, size_bin
from locus_lightning.cue_samplers.base import CueSampler, Picture, checked_windows
from locus_lightning.data.coco.annotations import CocoImage
from locus_lightning.data.coco.filters import second_match, texture
from locus_lightning.data.images import Exif, open_rgb
from locus_lightning.data.source import CueDataset, CueKey
from locus_lightning.errors import DataError, PictureError
from locus_lightning.types import Box, Cue, CueSample, CueWindow, IntBox, Size, SizeBin


@dataclass(frozen=True, slots=True)
class CueEntry:
    """One cue of the index: which image, which window."""

    path: str
    size: Size
    image_id: int
    window: CueWindow

    @property
    def id(self) -> str:
        """Unique in a data set: image id and object id."""
        return f"{self.image_id}-{self.window.object_id}"


def windows_of(
    images: Iterable[CocoImage], sampler: CueSampler, per_image: int, seed: int, left_out: Counter[str], exif: Exif = "skip"
) -> dict[SizeBin, list[CueEntry]]:
    """Windows of images by size bin, without near-duplicates, at most ``per_image`` of one image (our decision 6).

    An image's windows depend on ``seed`` and its id alone. ``left_out`` counts what is not kept, object by object where the sampler's windows
    belong to objects.

    Raises:
        PluginError: a window is none that can be trained on (:func:`~locus_lightning.cue_samplers.base.checked_windows`).
    """
    by_bin: dict[SizeBin, list[CueEntry]] = defaultdict(list)
    for image in images:
        rng = np.random.default_rng([seed, image.id % 2**64])  # an id may be negative
        picture = Picture(image.size, image.path, image.id, partial(open_rgb, image.path, image.size, exif))
        try:
            proposed = checked_windows(sampler, picture, image.objects, rng)
        except PictureError:  # of a sampler that looks at pixels
            left_out["pictures that cannot be used"] += 1
            continue
        if sampler.about_objects and len(proposed) < len(image.objects):
            left_out.update(_without_window(sampler, image, proposed))
        windows = _without_duplicates(proposed)
        left_out["near-duplicate windows"] += len(proposed) - len(windows)
        left_out["windows over per_image"] += max(0, len(windows) - per_image)
        for i in sorted(rng.permutation(len(windows))[:per_image]):
            by_bin[windows[i].size_bin].append(CueEntry(image.path, image.size, image.id, windows[i]))
    return by_bin


def _without_window(sampler: CueSampler, image: CocoImage, windows: Sequence[CueWindow]) -> Counter[str]:
    """Why objects of an image gave no window, counted."""
    reasons: Counter[str] = Counter()
    cue_ids = {window.object_id for window in windows}
    for item in image.objects:
        if item.id in cue_ids:
            continue
        window = sampler.integer_window(item.box, image.size)
        if window is None:
            reasons[f"objects with a side under {sampler.min_side} px"] += 1
        elif size_bin(window, image.size) not in sampler.mix:
            reasons["objects of sizes outside the mix"] += 1
        else:
            reasons["objects that the cue sampler does not take"] += 1
    return reasons


_MOST_BAD = 100
"""Pictures in a row that may be unusable before the folder itself is taken to be gone, such as a mount that was lost (our choice)."""


class CueSet(CueDataset):
    """Samples of an index. A picture that cannot be used is replaced by the next entry's and noted on the sample.

    Args:
        entries: the index.
        make: cuts the cue out of the picture.
        open_image: opens the picture of an entry; raises PictureError where that fails.
        min_texture: see :class:`~locus_lightning.data.coco.coco.CocoCues`.
        max_match: see there.
    """

    def __init__(
        self,
        entries: Sequence[CueEntry],
        make: Callable[[Image.Image, CueWindow], Cue],
        open_image: Callable[[CueEntry], Image.Image],
        min_texture: float = 0.0,
        max_match: float = 1.0,
    ) -> None:
        self.entries, self.make, self.open_image = list(entries), make, open_image
        self.min_texture, self.max_match = min_texture, max_match
        self._windows: dict[str, list[CueWindow]] = defaultdict(list)
        for entry in self.entries:
            self._windows[entry.path].append(entry.window)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: CueKey) -> CueSample:
        bad: list[tuple[str, str]] = []
        for step in range(len(self)):
            entry = self.entries[(key[1] + step) % len(self)]
            if any(path == entry.path for path, _ in bad):
                continue
            try:
                image = self.open_image(entry)
            except PictureError as cause:
                bad.append((entry.path, str(cause)))
                if len(bad) == _MOST_BAD:
                    break
                continue
            if not self._worth_asking(image, entry.window.box):
                continue
            x1, y1, x2, y2 = entry.window.box
            box = (float(x1), float(y1), float(x2), float(y2))
            others = tuple(window for window in self._windows[entry.path] if window is not entry.window)
            return CueSample(entry.id, image, self.make(image, entry.window), box, others=others, quarantined=tuple(bad))
        if not bad:
            raise DataError(f"no cue passes min_texture {self.min_texture} and max_match {self.max_match}; relax data.source.")
        raise DataError(
            f"{len(bad)} pictures in a row cannot be used, such as {bad[0][0]} ({bad[0][1]}); check that the picture folder is still there."
        )

    def cue_share(self, item: int) -> float:
        """See :meth:`CueDataset.cue_share`."""
        entry = self.entries[item]
        return box_area(entry.window.box) / (entry.size[0] * entry.size[1])

    def _worth_asking(self, image: Image.Image, window: IntBox) -> bool:
        if self.min_texture > 0 and texture(image, window) < self.min_texture:
            return False
        return self.max_match >= 1 or second_match(image, window) <= self.max_match


def open_file(entry: CueEntry, exif: Exif = "skip") -> Image.Image:
    """The picture of an entry from its path.

    Raises:
        PictureError: see :func:`~locus_lightning.data.images.open_rgb`.
    """
    return open_rgb(entry.path, entry.size, exif)


def _without_duplicates(windows: Sequence[CueWindow]) -> list[CueWindow]:
    """Keep the first of windows that overlap by IoU > 0.9 (our decision 6)."""
    if len(windows) < 2:
        return list(windows)
    boxes: list[Box] = [(float(w.box[0]), float(w.box[1]), float(w.box[2]), float(w.box[3])) for w in windows]
    corners = np.array(boxes)
    reach = 0.2 * (corners[:, 2:] - corners[:, :2]).max(axis=1)
    apart = np.abs(corners[:, None] - corners[None]).max(axis=-1) > reach[:, None]
    if int((~apart).sum()) == len(boxes):  # nobody is near enough to anybody: the usual case, and quick to see
        return list(windows)
    close = pairwise_iou(boxes, boxes) > 0.9
    kept: list[int] = []
    for i in range(len(windows)):
        if not close[i, kept].any():
            kept.append(i)
    return [windows[i] for i in kept]


def in_mix(
    by_bin: dict[SizeBin, list[CueEntry]], mix: dict[SizeBin, float], size: int, seed: int, left_out: Counter[str]
) -> list[CueEntry]:
    """At most ``size`` entries in the shares of ``mix``; the scarcest bin bounds the whole. ``left_out`` counts the others."""
    rng = np.random.default_rng([seed, size])
    bound = min([size, *(int(len(by_bin[name]) / share) for name, share in mix.items())])
    chosen: list[CueEntry] = []
    for name, share in mix.items():
        entries = by_bin[name]
        picked = rng.permutation(len(entries))[: round(bound * share)]
        chosen += [entries[i] for i in sorted(picked)]
    left_out["windows beyond the mix or the number asked for"] += sum(map(len, by_bin.values())) - len(chosen)
    return sorted(chosen, key=lambda e: (e.image_id, e.window.object_id))
