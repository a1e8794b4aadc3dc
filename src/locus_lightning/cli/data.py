"""``locus data``: build a cue corpus, look through it, and ask for its cues in words."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from locus_lightning.errors import ConfigError

_PRESETS: dict[str, dict[str, object]] = {
    "paper": {"train": 99_500, "val": 500, "mix": "tiny=0.7,small=0.3", "cues": "objects", "min_side": 16}
}
"""``paper``: section 4 of the paper, with the RefCOCO test images that lie in COCO's train2014 (our decision 7)."""


def data_command(arguments: Sequence[str]) -> int:
    """``locus data build | inspect | text-cues | push``."""
    parser = argparse.ArgumentParser(prog="locus data", description="Build a cue corpus, look through it, and ask for its cues in words.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | inspect | text-cues | push")
    _build_parser(commands)
    _inspect_parser(commands)
    _text_cues_parser(commands)
    _push_parser(commands)
    options = parser.parse_args(arguments)
    done: int = options.run(options)
    return done


# ---- push ----------------------------------------------------------------------------------------------------------------


def _push_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="a corpus -> a dataset of the Hub",
        description="Write pictures, crops and boxes as parquet that load_dataset reads, with a card, and push them. A push that was stopped goes on "
        "with the same command.",
        epilog="example: locus data push corpus ada/my-cues --private",
    )
    parser.add_argument("corpus", type=Path, help="a folder that locus data build wrote")
    parser.add_argument("name", help="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--write-only", action="store_true", help="write the files to CORPUS/hub and push nothing")
    parser.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> int:
    from locus_lightning.cli.hub import check_login, check_name, push_folder
    from locus_lightning.data.corpus.hub_form import write_hub_form

    check_name(options.name)
    if not options.write_only:
        check_login()
    folder = options.corpus / "hub"
    counts = write_hub_form(options.corpus, folder)
    print(f"{', '.join(f'{count:,} {split}' for split, count in counts.items())} cues: {folder}")
    if not options.write_only:
        print(f"pushed: {push_folder(folder, options.name, 'dataset', options.private)}")
    return 0


# ---- build ---------------------------------------------------------------------------------------------------------------


def _build_parser(commands: Any) -> None:
    from locus_lightning.data.corpus.build import BuildSettings

    parser = commands.add_parser(
        "build",
        help="annotations and pictures -> a corpus",
        description="Turn annotations (COCO, YOLO, Pascal VOC, Label Studio) and pictures into a corpus: a parquet index, a manifest, and shards on request. "
        "The same settings and seed give the same corpus; a build that was stopped goes on with the same command.",
        epilog="example: locus data build --annotations instances_train2017.json --images train2017 --out corpus --preset paper",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of the corpus")
    parser.add_argument("--preset", choices=list(_PRESETS), help="paper: 99,500 + 500 cues, tiny:small 70:30, sides of at least 16 px")
    parser.add_argument(
        "--format", choices=("auto", "coco", "yolo", "voc", "label-studio"), default="auto",
        help="of the annotations: a COCO or Label Studio JSON, or a folder of YOLO's .txt or Pascal VOC's .xml files (default: auto, by the files)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    helps = dict(re.findall(r"^ {8}(\w+): (.+)$", BuildSettings.__doc__ or "", re.MULTILINE))
    for field in dataclasses.fields(BuildSettings):
        kind = get_type_hints(BuildSettings)[field.name]
        flag = "--" + field.name.replace("_", "-")
        needed = field.default is dataclasses.MISSING
        shown = "" if needed or field.default in (None, False) else f" (default: {field.default})"
        options: dict[str, Any] = {"help": helps[field.name].replace("``", "").rstrip(".") + shown, "default": None, "required": needed}
        if kind is bool:
            options = {"help": options["help"], "default": None, "action": "store_true"}
        elif get_origin(kind) is Literal:
            options["choices"] = get_args(kind)
        elif kind in (int, float):
            options["type"] = kind
        parser.add_argument(flag, **options)
    parser.set_defaults(run=_build)


def _build(options: argparse.Namespace) -> int:
    from locus_lightning.cli.class_files import importable
    from locus_lightning.data.corpus.build import BuildSettings, build
    from locus_lightning.data.formats import coco_file

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = [field.name for field in dataclasses.fields(BuildSettings)]
    stated = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    preset = _PRESETS.get(options.preset, {})
    for name in sorted(set(stated) & set(preset)):
        if stated[name] != preset[name]:
            print(f"--{name.replace('_', '-')} {stated[name]} takes the place of {preset[name]} in the preset {options.preset}.")
    if options.workers < 1:
        raise ConfigError(f"--workers is {options.workers}; it is at least 1.")
    for key, pictures in (("annotations", "images"), ("val_annotations", "val_images")):
        if key in stated:
            folder, beside = stated.get(pictures) or stated["images"], options.out.with_name(f"{options.out.name}.{key}.json")
            stated[key] = str(coco_file(Path(stated[key]), Path(folder), options.format, beside))
    stated = importable(stated, Path.cwd())  # FILE.py:NAME of a cue sampler
    manifest = build(BuildSettings(**{**preset, **stated}), options.out, options.workers)
    _print_manifest(manifest, options.out)
    return 0


def _print_manifest(manifest: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from locus_lightning.data.coco.annotations import counted

    table = Table(title=f"Corpus {folder}")
    for name in ("split", "cues", "pictures", "by size", "labels"):
        table.add_column(name, justify="left" if name in ("split", "by size") else "right")
    for split, counts in manifest["counts"].items():
        bins = ", ".join(f"{name} {number:,} ({number / counts['cues']:.1%})" for name, number in counts["bins"].items())
        table.add_row(split, f"{counts['cues']:,}", f"{counts['images']:,}", bins, f"{counts['labels']:,}")
    table.caption = f"left out: {counted(manifest['left_out'])}"
    Console().print(table)
    print(f"train on it: --data.source=CorpusCues --data.source.folder={folder}\nlook through it: locus data inspect {folder}")


# ---- inspect -------------------------------------------------------------------------------------------------------------


def _inspect_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="one HTML page: statistics and a contact sheet",
        description="Check a corpus against its manifest and write one HTML page: statistics, and a contact sheet of pictures with the box, "
        "the cue beside it, its size bin and the sizes that a model will see.",
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--number", type=int, default=60, help="cues on the sheet (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="which cues")
    parser.add_argument("--out", type=Path, help="default: inspect.html in the corpus folder")
    parser.add_argument("--images", help="picture folder, where it has moved")
    parser.add_argument("--expressions", help="show the cues in words, from locus data text-cues")
    parser.add_argument("--side", type=int, default=0, help="longest side a model sees, pixels, for the sizes shown (default: as it is)")
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from locus_lightning.data.corpus.contact_sheet import write_sheet
    from locus_lightning.data.corpus.corpus import CorpusCues, read_manifest

    manifest = read_manifest(options.corpus, deep=True)
    source = CorpusCues(str(options.corpus), options.images, options.expressions)
    out = options.out or options.corpus / "inspect.html"
    shown = write_sheet(manifest, source.dataset(options.split, 0), out, options.split, options.number, options.seed, options.side)
    _print_manifest(manifest, options.corpus)
    print(f"{shown} cues on {out}")
    return 0


# ---- text cues -----------------------------------------------------------------------------------------------------------


def _text_cues_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "text-cues",
        help="referring expressions for the text-cue control",
        description="For the control that replaces the crop by words: write one request a cue for any model behind the OpenAI batch format "
        "(vLLM's `vllm run-batch -i requests.jsonl -o answers.jsonl --model NAME` reads it), then read the answers back.",
        epilog="example: locus data text-cues corpus --requests requests.jsonl --model NAME; locus data text-cues corpus "
        "--answers answers.jsonl --out expressions.jsonl",
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--requests", type=Path, help="write requests to this file")
    parser.add_argument("--answers", type=Path, help="read the answers of this file")
    parser.add_argument("--out", type=Path, default=Path("expressions.jsonl"), help="expressions read (default: expressions.jsonl)")
    parser.add_argument("--model", default="model", help="model name to put into the requests")
    parser.add_argument("--images", help="picture folder, where it has moved")
    parser.add_argument("--limit", type=int, help="at most so many cues of each split")
    parser.set_defaults(run=_text_cues)


def _text_cues(options: argparse.Namespace) -> int:
    from locus_lightning.data.corpus.corpus import CorpusCues
    from locus_lightning.data.corpus.text_cues import read_answers, write_requests

    if (options.requests is None) == (options.answers is None):
        raise ConfigError("give either --requests FILE (to write them) or --answers FILE (to read them back).")
    source = CorpusCues(str(options.corpus), options.images)
    sets = [source.dataset(split, 0) for split in ("train", "val")]
    if options.requests:
        number = write_requests(sets, options.requests, options.model, options.limit)
        print(f"{number:,} requests in {options.requests}")
        return 0
    result = read_answers(sets, options.answers, options.out)
    print(f"{result.kept:,} expressions in {options.out}; {result.missing:,} cues have none")
    for reason, number in result.refused.items():
        print(f"  refused: {number:,} {reason}", file=sys.stderr)
    print(f"train with them: --data.source=CorpusCues --data.source.folder={options.corpus} --data.source.expressions={options.out}")
    return 0 if result.kept else 1


# ---- SmallStar -----------------------------------------------------------------------------------------------------------


def smallstar_command(arguments: Sequence[str]) -> int:
    """``locus smallstar FOLDER``."""
    parser = argparse.ArgumentParser(
        prog="locus smallstar",
        description="Write SmallStar, a generated benchmark of small things among distractors, in V*Bench's file format.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--number", type=int, default=200, help="questions of each kind (default: 200)")
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed makes another benchmark (default: 0, the one that scores are quoted for)"
    )
    options = parser.parse_args(arguments)
    from locus_lightning.data.synthetic.smallstar import KINDS, write_smallstar

    write_smallstar(options.folder, options.number, options.seed)
    print(f"{options.number} questions of each kind ({', '.join(KINDS)}) in {options.folder}")
    return 0
