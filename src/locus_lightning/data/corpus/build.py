"""``locus data build``: annotations and pictures -> a corpus. Parallel, and continued where it was stopped.

The work is cut into parts that depend on the settings alone, so the corpus is the same for any number of workers and any
interruption. Finished parts lie in ``parts/`` until the manifest, which is written last, makes the corpus whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from locus_lightning import __version__, plugins
from locus_lightning.cue_samplers.base import CueSampler
from locus_lightning.cue_samplers.objects import ObjectCues
from locus_lightning.cue_samplers.random_crop import RandomCropCues
from locus_lightning.data.coco.annotations import CocoImage, counted
from locus_lightning.data.coco.coco import CocoCues
from locus_lightning.data.coco.index import CueEntry, in_mix, open_file, windows_of
from locus_lightning.data.corpus import corpus
from locus_lightning.data.corpus.files import disk_full_is_a_sentence, in_parallel, write
from locus_lightning.data.corpus.statistics import counts_of, files_of, statistics_of
from locus_lightning.data.images import Exif
from locus_lightning.data.source import SPLITS, Split
from locus_lightning.errors import ConfigError, DataError, PictureError
from locus_lightning.files import whole
from locus_lightning.types import SizeBin

_IMAGES_A_PART = 4000
_PARTS_WORTH_PROCESSES = 100
"""Fewer parts of the index are done sooner than processes have started (COCO's train2017 is 30)."""

_UNREADABLE = "cues of pictures that cannot be used"
_IMAGES_A_SHARD = 1000
_IMAGES_A_ROW_GROUP = 16


@dataclass(frozen=True)
class BuildSettings:
    """What decides a corpus; a change of any of these makes another one.

    Args:
        annotations: The annotations: a COCO-format JSON, or another format (see --format).
        images: The folder of its pictures.
        val_annotations: The annotation file of the validation pictures; null splits by picture.
        val_images: The folder of the validation pictures; null is ``images``.
        train: The largest number of training cues.
        val: The largest number of validation cues.
        val_fraction: The share of the pictures held out when one file is split.
        mix: The share of each size bin.
        cues: ``objects`` or ``random`` windows, or a cue sampler: a plugin's name, a dotted path, or FILE.py:NAME.
        min_side: The least side of a window, original pixels.
        per_image: The largest number of cues of one picture.
        exclude: A file of image ids to leave out, or RefCOCO's own files.
        bad_boxes: ``skip`` and count them, or ``refuse`` the file.
        exif: ``skip``, ``apply`` or ``ignore`` an EXIF orientation that the annotated size does not settle.
        verify: open every picture that has a cue and leave out those that do not open (shards do so always).
        shards: put the pictures' bytes into the corpus.
        seed: The seed of everything random.
    """

    annotations: str
    images: str
    val_annotations: str | None = None
    val_images: str | None = None
    train: int = 99_500
    val: int = 500
    val_fraction: float = 0.02
    mix: str = "tiny=0.7,small=0.3"
    cues: str = "objects"
    min_side: int = 16
    per_image: int = 8
    exclude: str | None = None
    bad_boxes: Literal["refuse", "skip"] = "skip"
    exif: Exif = "skip"
    verify: bool = False
    shards: bool = False
    seed: int = 0

    def sampler(self) -> CueSampler:
        """The cue sampler of these settings."""
        mix: Any = corpus.parse_mix(self.mix)
        named: dict[str, Any] = {"objects": ObjectCues, "random": RandomCropCues}
        kind = named.get(self.cues) or plugins.load_named("cue_samplers", self.cues)
        try:
            return kind(mix, self.min_side)  # type: ignore[no-any-return]
        except TypeError as cause:
            raise ConfigError(
                f"--cues {self.cues}: it cannot be made of a mix and min_side alone ({cause}); give its other settings defaults."
            ) from cause

    def source(self) -> CocoCues:
        """The annotation files of these settings."""
        if self.val_images and self.val_images != self.images and not self.val_annotations:
            raise ConfigError("--val-images is given without --val-annotations; give both, or neither.")
        images, val_images = (str(Path(f).expanduser().absolute()) if f else None for f in (self.images, self.val_images))
        return CocoCues(
            self.annotations, images or "", self.val_annotations, val_images, self.train, self.val, self.val_fraction,
            self.per_image, self.exclude, self.bad_boxes, exif=self.exif, cue_sampler=self.sampler(),
        )  # fmt: skip


def build(settings: BuildSettings, folder: Path, workers: int = 1) -> dict[str, Any]:
    """Make the corpus in ``folder`` and return its manifest; one that is there already, by the same settings, is left as it is.

    Raises:
        DataError: what the annotation files or the disk refuse.
        ConfigError: ``folder`` holds something else, or settings that do not go together.
    """
    source = settings.source()
    hashes = _hashes(source)
    key = hashlib.sha256(json.dumps([corpus.FORMAT, asdict(settings), hashes], sort_keys=True).encode()).hexdigest()
    if not _claim(folder, key):
        return corpus.read_manifest(folder)
    source.check()
    try:
        with disk_full_is_a_sentence(folder):
            return _build(settings, source, folder, workers, key, hashes)
    except KeyboardInterrupt:
        raise DataError(f"stopped; the same command goes on where it was (finished parts are in {folder / 'parts'}).") from None


def _build(settings: BuildSettings, source: CocoCues, folder: Path, workers: int, key: str, hashes: dict[Split, str]) -> dict[str, Any]:
    left_out: Counter[str] = Counter(source.left_out)
    chosen: dict[Split, list[CueEntry]] = {}
    pictures = {split: source.files.get(split, source.files["train"])[1] for split in SPLITS}
    common = Path(os.path.commonpath(list(pictures.values())))
    windows_found: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        images = source.images_of(split, settings.seed)
        parts = [images[i : i + _IMAGES_A_PART] for i in range(0, len(images), _IMAGES_A_PART)]
        jobs = [(folder / "parts" / f"{split}-{n:05d}.parquet", common, part, settings) for n, part in enumerate(parts)]
        by_bin: dict[SizeBin, list[CueEntry]] = defaultdict(list)
        many = workers if len(jobs) >= _PARTS_WORTH_PROCESSES else 1
        for path in in_parallel(_index_part, jobs, many, f"{split}: windows of {len(images):,} pictures"):
            table = pq.read_table(path)
            left_out.update(json.loads(table.schema.metadata[b"left_out"]))
            for entry in corpus.from_table(table, common):
                by_bin[entry.window.size_bin].append(entry)
        windows_found[split] = {name: len(entries) for name, entries in by_bin.items()}
        mix: Any = source.cue_sampler.mix
        chosen[split] = in_mix(by_bin, mix, source.sizes[split], settings.seed, left_out)
        if not chosen[split]:
            raise DataError(
                f"{settings.annotations} gives no {split} cues in the mix {settings.mix} with sides of at least {settings.min_side} px "
                f"(found: {windows_found[split] or 'none'}; left out: {counted(left_out)}); change --mix, --min-side or --val-fraction."
            )
    if settings.verify or settings.shards:
        chosen = _only_openable(chosen, settings, folder, workers, left_out)
    for split, entries in chosen.items():
        write(corpus.to_table(entries, common), folder / "index" / f"{split}.parquet")
    if settings.shards:
        _write_shards([e for entries in chosen.values() for e in entries], common, folder, workers)
    manifest = {
        "format": corpus.FORMAT,
        "locus_lightning": __version__,
        "key": key,
        "settings": asdict(settings),
        "sources": {name: {"file": str(file), "sha256": hashes[name]} for name, (file, _) in source.files.items()},
        "images": str(common),
        "shards": settings.shards,
        "counts": {split: counts_of(entries) for split, entries in chosen.items()},
        "found": windows_found,
        "left_out": {name: number for name, number in sorted(left_out.items()) if number},
        "missing_images": source.missing[:20],
        "statistics": {split: statistics_of(entries) for split, entries in chosen.items()},
        "files": files_of(folder),
    }
    with whole(folder / corpus.MANIFEST) as beside:
        beside.write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(folder / "parts", ignore_errors=True)
    return manifest


# ---- parts -------------------------------------------------------------------------------------------------------------


def _index_part(job: tuple[Path, Path, Sequence[CocoImage], BuildSettings]) -> Path:
    path, common, images, settings = job
    if not path.is_file():
        left_out: Counter[str] = Counter()
        by_bin = windows_of(images, settings.sampler(), settings.per_image, settings.seed, left_out, settings.exif)
        table = corpus.to_table([entry for name in sorted(by_bin) for entry in by_bin[name]], common)
        write(table.replace_schema_metadata({"left_out": json.dumps(left_out)}), path)
    return path


def _verify_part(job: tuple[Path, Sequence[CueEntry], Exif]) -> Path:
    path, entries, exif = job
    if not path.is_file():
        bad = {}
        for entry in entries:
            try:
                open_file(entry, exif)
            except PictureError as cause:
                bad[entry.path] = str(cause)
        write(
            pa.table({"path": list(bad), "reason": list(bad.values())}, pa.schema([("path", pa.string()), ("reason", pa.string())])), path
        )
    return path


def _shard(job: tuple[Path, Path, Sequence[str]]) -> Path:
    path, common, names = job
    if not path.is_file():
        schema = pa.schema([("file_name", pa.string()), ("image", pa.binary())])
        with whole(path) as beside, pq.ParquetWriter(beside, schema, compression="none") as writer:  # JPEG bytes do not get smaller
            for i in range(0, len(names), _IMAGES_A_ROW_GROUP):
                some = list(names[i : i + _IMAGES_A_ROW_GROUP])
                writer.write_table(pa.table({"file_name": some, "image": [(common / name).read_bytes() for name in some]}, schema))
    return path


def _only_openable(
    chosen: dict[Split, list[CueEntry]], settings: BuildSettings, folder: Path, workers: int, left_out: Counter[str]
) -> dict[Split, list[CueEntry]]:
    """Open every picture once; cues of those that cannot be used are left out, counted and listed.

    Raises:
        DataError: a split has none left.
    """
    first = {entry.path: entry for entries in chosen.values() for entry in entries}
    one_a_picture = [first[path] for path in sorted(first)]
    jobs = [
        (folder / "parts" / f"verify-{n:05d}.parquet", one_a_picture[i : i + 500], settings.exif)
        for n, i in enumerate(range(0, len(one_a_picture), 500))
    ]
    bad: dict[str, str] = {}
    for path in in_parallel(_verify_part, jobs, workers, f"opening {len(one_a_picture):,} pictures"):
        table = pq.read_table(path)
        bad |= dict(zip(table["path"].to_pylist(), table["reason"].to_pylist(), strict=True))
    for name, reason in sorted(bad.items()):
        print(f"left out: {name} ({reason})")
    kept = {split: [entry for entry in entries if entry.path not in bad] for split, entries in chosen.items()}
    left_out[_UNREADABLE] += sum(len(entries) for entries in chosen.values()) - sum(len(entries) for entries in kept.values())
    for split, entries in kept.items():
        if not entries:
            raise DataError(
                f"no picture of the {split} split can be used, such as {next(iter(bad))} ({next(iter(bad.values()))}); left out: {counted(left_out)}."
            )
    return kept


def _write_shards(entries: Sequence[CueEntry], common: Path, folder: Path, workers: int) -> None:
    names = sorted({str(Path(entry.path).relative_to(common)) for entry in entries})
    parts = [names[i : i + _IMAGES_A_SHARD] for i in range(0, len(names), _IMAGES_A_SHARD)]
    jobs = [(folder / "shards" / f"{n:05d}-of-{len(parts):05d}.parquet", common, part) for n, part in enumerate(parts)]
    for _ in in_parallel(_shard, jobs, workers, f"{len(names):,} pictures into {len(parts)} shards"):
        pass


# ---- the whole ---------------------------------------------------------------------------------------------------------


def _hashes(source: CocoCues) -> dict[Split, str]:
    """The hashes of the annotation files."""
    for file, _ in source.files.values():
        if not file.is_file():
            raise DataError(f"the annotation file {file} does not exist; set --annotations to a COCO-format JSON.")
    return {name: corpus.digest(file) for name, (file, _) in source.files.items()}


def _claim(folder: Path, key: str) -> bool:
    """Mark an empty folder as this build's; false where the finished corpus is there already."""
    note = folder / "parts" / "settings"
    if (folder / corpus.MANIFEST).is_file():
        if corpus.read_manifest(folder).get("key") != key:
            raise ConfigError(f"{folder} holds a corpus of other settings or other annotations; choose another --out, or delete it.")
        print(f"{folder} is built already, by the same settings.")
        return False
    if note.is_file() and note.read_text() != key:
        raise ConfigError(f"{folder} holds the unfinished build of other settings; choose another --out, or delete it.")
    if not note.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no corpus; choose another --out.")
    with disk_full_is_a_sentence(folder):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(key)
    for stale in folder.rglob("*.writing"):
        stale.unlink()
    return True
