from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from locus_lightning import plugins
from locus_lightning.cli.info import plugins_command
from locus_lightning.errors import PluginError


class FakeDistribution:
    def __init__(self, name):
        self.name, self.version = name, "1.0"


def offer(monkeypatch, *offers):
    """Let entry points of the rewards group be (name, target, distribution)."""
    points = []
    for name, target, distribution in offers:
        point = EntryPoint(name, target, "locus_lightning.rewards")
        vars(point).update(dist=FakeDistribution(distribution))
        points.append(point)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [p for p in points if p.group == group])


def test_every_built_in_loads_under_its_class_name():
    for kind in plugins.KINDS:
        for plugin in plugins.available(kind):
            assert plugins.load(kind, plugin.name).__name__ == plugin.name
            assert plugin.class_path.endswith(f".{plugin.name}")


def test_an_unknown_name_answers_with_the_closest_and_the_list():
    with pytest.raises(PluginError, match=r"did you mean 'FormatReward'\? Installed: IoUReward, FormatReward"):
        plugins.find("rewards", "FormatRewrd")


def test_a_name_taken_twice_names_both_distributions(monkeypatch):
    offer(monkeypatch, ("XReward", "a:XReward", "pack-a"), ("XReward", "b:XReward", "pack-b"))
    with pytest.raises(PluginError, match=r"claimed by pack-a 1\.0 and pack-b 1\.0"):
        plugins.find("rewards", "XReward")


def test_a_plugin_that_fails_to_import_is_named_with_its_package_and_cause(monkeypatch):
    offer(monkeypatch, ("XReward", "no_such_module:XReward", "pack-a"))
    with pytest.raises(PluginError, match=r"'XReward' \(pack-a 1\.0, no_such_module:XReward\) cannot be imported: ModuleNotFoundError"):
        plugins.load("rewards", "XReward")


def test_what_is_no_reward_is_refused(monkeypatch):
    offer(monkeypatch, ("Fraction", "fractions:Fraction", "pack-a"))
    with pytest.raises(PluginError, match="not a subclass of locus_lightning.rewards.base.Reward"):
        plugins.load("rewards", "Fraction")
    offer(monkeypatch, ("Nickname", "locus_lightning.rewards.iou:IoUReward", "pack-a"))
    with pytest.raises(PluginError, match="not its class name 'IoUReward'"):
        plugins.load("rewards", "Nickname")


def test_the_listing_reads_metadata_only_and_check_imports(monkeypatch, capsys):
    offer(monkeypatch, ("XReward", "no_such_module:XReward", "pack-a"))
    assert plugins_command(["rewards"]) == 0
    assert "XReward" in capsys.readouterr().out
    assert plugins_command(["rewards", "--check"]) == 1
    assert "ModuleNotFoundError" in capsys.readouterr().out


def test_a_built_in_keeps_its_name_and_the_claim_is_reported(monkeypatch, capsys):
    from locus_lightning.rewards.iou import IoUReward

    offer(monkeypatch, ("IoUReward", "a:IoUReward", "pack-a"))
    assert plugins.load("rewards", "IoUReward") is IoUReward
    assert plugins_command(["rewards"]) == 0
    assert "pack-a claims the name 'IoUReward' of a built-in" in " ".join(capsys.readouterr().out.split())
    assert plugins_command(["rewards", "--check"]) == 1


def test_a_plugin_that_exits_or_is_unfinished_is_named(monkeypatch, tmp_path):
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
    (tmp_path / "unfinished.py").write_text("from locus_lightning.rewards.base import Reward\nclass XReward(Reward): pass")
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, ("XReward", "exits:XReward", "pack-a"))
    with pytest.raises(PluginError, match="cannot be imported: SystemExit"):
        plugins.load("rewards", "XReward")
    offer(monkeypatch, ("XReward", "unfinished:XReward", "pack-a"))
    with pytest.raises(PluginError, match="cannot be built: it does not define score"):
        plugins.load("rewards", "XReward")
