"""The small commands: ``locus plugins``, ``locus backbones`` and ``locus toy``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from locus_lightning import plugins
from locus_lightning.errors import ConfigError, PluginError


def plugins_command(arguments: Sequence[str]) -> int:
    """List plugins from metadata; ``--check`` imports each one; ``new`` writes a package. Returns 1 when a check fails."""
    if arguments[:1] == ["new"]:
        from locus_lightning.cli.new_plugin import new_command

        return new_command(arguments[1:])
    parser = argparse.ArgumentParser(
        "locus plugins",
        description="List reward, cue sampler, task and backbone plugins; `locus plugins new --help` tells how to begin one.",
    )
    parser.add_argument("kind", nargs="?", choices=plugins.KINDS, help="only this kind")
    parser.add_argument("--check", action="store_true", help="import every plugin and say what fails")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    kinds = [options.kind] if options.kind else list(plugins.KINDS)
    rows = [_row(plugin, options.check) for kind in kinds for plugin in plugins.available(kind)]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_rows(rows, options.check)
    return int(options.check and any(row["check"] != "ok" for row in rows))


def _row(plugin: plugins.Plugin, check: bool) -> dict[str, str]:
    row = {
        "kind": plugin.kind,
        "name": plugin.name,
        "class_path": plugin.class_path,
        "distribution": plugin.distribution,
        "version": plugin.version,
    }
    if plugins.shadowed(plugin):
        row["check"] = (
            f"{plugin.distribution} claims the name {plugin.name!r} of a built-in, which is taken instead; rename the entry point."
        )
    elif check:
        try:
            plugins.load(plugin.kind, plugin.name)
            row["check"] = "ok"
        except PluginError as error:
            row["check"] = str(error)
    return row


def _print_rows(rows: Sequence[dict[str, str]], check: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("kind", "name", "package", *(["check"] if check else [])):
        table.add_column(title, overflow="fold")
    for row in rows:
        state = [] if not check else ["ok" if row["check"] == "ok" else "fails"]
        table.add_row(row["kind"], row["name"], f"{row['distribution']} {row['version']}", *state)
    Console().print(table)
    for row in rows:
        if row.get("check", "ok") != "ok":
            print(row["check"])


def backbones_command(arguments: Sequence[str]) -> int:
    """A table of families: how each writes boxes, and what bounds its images."""
    parser = argparse.ArgumentParser(
        "locus backbones",
        description="List the families of models: what their box coordinates are, whether their authors say so, and what bounds an image's "
        "tokens.",
    )
    parser.add_argument("checkpoint", nargs="?", help="say which backbone speaks this checkpoint; its config is read, no weights")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    from locus_lightning.backbones.auto import speaker_of

    if options.checkpoint:
        print(speaker_of(options.checkpoint)[0].__name__)
        return 0
    rows, broken = [], []
    for plugin in plugins.available("backbones"):
        try:
            rows += [] if plugin.name == "AutoBackbone" else [_family(plugin)]
        except PluginError as error:
            broken.append(str(error))
    print(*(f"left out: {error}" for error in broken), sep="\n", end="\n" if broken else "", file=sys.stderr)
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        caption="* not confirmed by the authors: our choice, which reinforcement teaches. AutoBackbone picks by model_type.",
    )
    for title in ("backbone", "model_type", "coordinates", "image budget", "packs"):
        table.add_column(title)
    for row in rows:
        frame = row["coordinates"] + ("" if row["confirmed"] else " *")
        types = ", ".join(row["model_types"]) or "any"
        table.add_row(row["name"], types, frame, row["image_budget"], "yes" if row["shares_prompts"] else "no")
    Console().print(table)
    return 0


def _family(plugin: plugins.Plugin) -> dict[str, Any]:
    kind = plugins.load("backbones", plugin.name)
    known = getattr(kind, "convention", None)
    return {
        "name": plugin.name,
        "class_path": plugin.class_path,
        "model_types": list(getattr(kind, "model_types", ())),
        "coordinates": known.frame if known else "not declared",
        "native": known.native if known else "",
        "confirmed": bool(known and known.confirmed),
        "image_budget": known.budget if known else "",
        "shares_prompts": bool(known and known.packs),
    }


def toy_command(arguments: Sequence[str]) -> int:
    """Write a toy checkpoint to a folder."""
    from locus_lightning.backbones import toy

    parser = argparse.ArgumentParser(
        "locus toy", description="Write a random toy checkpoint of a real architecture, for trying a config on a CPU."
    )
    parser.add_argument("family", help=", ".join(toy.families()))
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = parser.parse_args(arguments)
    if options.folder.is_dir() and any(options.folder.iterdir()):
        raise ConfigError(f"the folder {options.folder} is not empty; name a new one.")
    import torch

    torch.manual_seed(options.seed)
    toy.save_toy_checkpoint(options.family, options.folder)
    print(f"wrote a toy {options.family} checkpoint to {options.folder}")
    return 0
