"""The small commands: ``locus plugins`` and ``locus toy``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from locus_lightning import plugins
from locus_lightning.errors import ConfigError, PluginError


def plugins_command(arguments: Sequence[str]) -> int:
    """List plugins from metadata; ``--check`` imports each one. Returns 1 when a check fails."""
    parser = argparse.ArgumentParser("locus plugins", description="List reward, cue sampler and backbone plugins.")
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
    return int(any(row.get("check", "ok") != "ok" for row in rows))


def _row(plugin: plugins.Plugin, check: bool) -> dict[str, str]:
    row = {
        "kind": plugin.kind,
        "name": plugin.name,
        "class_path": plugin.class_path,
        "distribution": plugin.distribution,
        "version": plugin.version,
    }
    if check:
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


def toy_command(arguments: Sequence[str]) -> int:
    """Write a toy checkpoint to a folder."""
    parser = argparse.ArgumentParser(
        "locus toy", description="Write a random toy checkpoint of a real architecture, for trying a config on a CPU."
    )
    parser.add_argument("family", help="llava, llava_onevision or qwen2_5_vl")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    options = parser.parse_args(arguments)
    if options.folder.is_dir() and any(options.folder.iterdir()):
        raise ConfigError(f"the folder {options.folder} is not empty; name a new one.")
    import torch

    from locus_lightning.backbones.toy import save_toy_checkpoint

    torch.manual_seed(options.seed)
    save_toy_checkpoint(options.family, options.folder)
    print(f"wrote a toy {options.family} checkpoint to {options.folder}")
    return 0
