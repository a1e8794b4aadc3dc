"""``locus configs``: the configurations that come with the package."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from locus_lightning.errors import ConfigError
from locus_lightning.training.config_files import shipped


def configs_command(arguments: Sequence[str]) -> int:
    """List them, or copy one."""
    parser = argparse.ArgumentParser(
        "locus configs",
        description="List the configurations that come with the package, or copy one here to edit. `locus fit --config configs/NAME` takes one "
        "that is not here from the package.",
        epilog="example: locus configs copy llava.yaml my.yaml",
    )
    commands = parser.add_subparsers(dest="command")
    listing = commands.add_parser("list", help="name and purpose of each (what no command does too)")
    listing.add_argument("--json", action="store_true", help="for programs")
    copying = commands.add_parser("copy", help="write one to this folder")
    copying.add_argument("name", help="as it is listed")
    copying.add_argument("to", nargs="?", type=Path, help="file or folder; default: its own name here")
    options = parser.parse_args(arguments)
    return _copy(options.name, options.to) if options.command == "copy" else _list(getattr(options, "json", False))


def _list(as_json: bool) -> int:
    purposes = {name: purpose(path) for name, path in shipped().items()}
    if as_json:
        print(json.dumps(purposes, indent=2))
        return 0
    width = max(map(len, purposes))
    print(*(f"{name:{width}}  {text}" for name, text in purposes.items()), sep="\n")
    return 0


def purpose(path: Path) -> str:
    """The first sentence of a configuration's header."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or not line.strip("# "):
            break
        words.append(line.strip("# "))
    return " ".join(words).partition(". ")[0].rstrip(".")


def _copy(name: str, to: Path | None) -> int:
    known = shipped()
    name = name.removeprefix("configs/")
    if name not in known:
        raise ConfigError(f"no configuration {name} comes with the package; choose from {', '.join(known)}.")
    target = Path(Path(name).name) if to is None else to / Path(name).name if to.is_dir() else to
    if target.exists():
        raise ConfigError(f"{target} exists; it is not overwritten. Give another name.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(known[name], target)
    print(f"{target}   (locus fit --config {target})")
    return 0
