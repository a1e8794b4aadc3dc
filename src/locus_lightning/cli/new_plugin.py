"""``locus plugins new``: a package for a plugin, which passes its own tests from the start."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

from locus_lightning import plugins
from locus_lightning.cli.plugin_templates import PROJECT, README, TEMPLATES
from locus_lightning.errors import ConfigError

_KINDS: dict[str, tuple[plugins.Kind, str]] = {
    "reward": ("rewards", "Reward"), "cue-sampler": ("cue_samplers", "Cues"), "task": ("tasks", "Task"), "backbone": ("backbones", "Backbone")
}  # fmt: skip
"""Kind as it is asked for -> its entry-point group, and what its class name ends with."""

_USE = {
    "reward": "Use it by name in a configuration: `rewards: [{{class_path: {name}}}, {{class_path: FormatReward}}]`.",
    "cue-sampler": "Use it by name in a configuration: `cue_sampler: {{class_path: {name}}}` of a data source.",
    "task": "Use it by name in a configuration: `model: {{task: {{class_path: {name}}}}}`.",
    "backbone": "Use it by name in a configuration: `model: {{backbone: {{class_path: {name}, init_args: {{checkpoint: FOLDER}}}}}}`.",
}


def new_command(arguments: Sequence[str]) -> int:
    """Write the package."""
    parser = argparse.ArgumentParser(
        "locus plugins new",
        description="Write a package for a plugin: a working example of its kind, to be changed, with an entry point and tests that pass.",
        epilog="example: locus plugins new reward BrevityReward",
    )
    parser.add_argument("kind", choices=list(_KINDS))
    parser.add_argument("name", help="the class name, which is the plugin's name too, such as BrevityReward")
    parser.add_argument("folder", nargs="?", type=Path, help="default: a folder named after the package")
    options = parser.parse_args(arguments)
    group, ending = _KINDS[options.kind]
    if not re.fullmatch(r"[A-Z]\w*", options.name):
        raise ConfigError(f"{options.name!r} is no class name; write one such as Brevity{ending}.")
    taken = [plugin for plugin in plugins.available(group) if plugin.name == options.name]
    if taken:
        raise ConfigError(f"{options.name} is a plugin of {taken[0].distribution} already; choose another name.")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", options.name).lower()
    facts = {"name": options.name, "package": f"locus-{words}", "module": f"locus_{words.replace('-', '_')}", "group": group}
    folder = options.folder or Path(facts["package"])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder; name a new one.")
    source, test = TEMPLATES[options.kind]
    files = {
        "pyproject.toml": PROJECT, "README.md": README, f"src/{facts['module']}/__init__.py": source, f"tests/test_{facts['module']}.py": test,
    }  # fmt: skip
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n").format(**facts, use=_USE[options.kind].format(**facts)), encoding="utf-8")
        print(path)
    print(f"next: pip install -e '{folder}[dev]', then pytest in {folder}")
    return 0
