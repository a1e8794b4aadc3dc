"""Configurations that come with the package, and those that build on another."""

from __future__ import annotations

import json

import pytest
import yaml

from locus_lightning.errors import ConfigError
from locus_lightning.training.config_files import locate, merged, read_full, shipped


def test_a_configuration_that_is_not_here_is_taken_from_the_package_and_said(locus, tmp_path, caplog):
    caplog.set_level("INFO")
    status, _, err = locus("fit", "--config", "configs/tiny.yaml", "--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--data.batch_size=2",
                           "--model.micro_batch_size=2", "--model.group_size=2", "--trainer.num_sanity_val_steps=0")  # fmt: skip
    assert status == 0, err
    assert "configs/tiny.yaml is not here; it is taken from the package" in caplog.text
    assert (tmp_path / "runs" / "tiny" / "version_0" / "config.yaml").is_file()


def test_configs_lists_and_copies(locus, tmp_path):
    status, out, _ = locus("configs")
    assert status == 0
    assert set(shipped()) >= {"tiny.yaml", "llava.yaml", "studies/paper_small.yaml"}
    assert all(name in out for name in shipped())
    assert json.loads(locus("configs", "list", "--json")[1])["llava.yaml"]
    assert locus("configs", "copy", "configs/llava.yaml")[0] == 0
    assert (tmp_path / "llava.yaml").read_bytes() == shipped()["llava.yaml"].read_bytes()
    status, _, err = locus("configs", "copy", "llava.yaml")
    assert (status, "is not overwritten" in err) == (2, True)
    status, _, err = locus("configs", "copy", "lava.yaml")
    assert (status, "choose from" in err) == (2, True)


def test_a_configuration_builds_on_another(tmp_path):
    (tmp_path / "short.yaml").write_text("base: tiny.yaml\ncheckpoint: toy:llava\nmodel: {group_size: 4, backbone: {dtype: float64}}\n")
    full, tiny = read_full(tmp_path / "short.yaml"), read_full(shipped()["tiny.yaml"])
    model = full["model"]["init_args"]
    assert model["group_size"] == 4
    assert model["backbone"]["init_args"] == {"checkpoint": "toy:llava", "dtype": "float64"}
    assert model["rewards"] == tiny["model"]["init_args"]["rewards"]
    assert full["data"] == tiny["data"]
    long = read_full(shipped()["tiny_long.yaml"])
    assert long["trainer"] == {**tiny["trainer"], "max_steps": 4000, "val_check_interval": 500,
                               "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs", "name": "tiny_long"}}}  # fmt: skip


def test_another_class_takes_the_place_of_a_class_with_its_settings():
    below = {"a": {"class_path": "X", "init_args": {"p": 1, "q": 2}}, "l": [1, 2], "m": {"n": 1}}
    assert merged(below, {"a": {"class_path": "X", "init_args": {"q": 3}}})["a"]["init_args"] == {"p": 1, "q": 3}
    assert merged(below, {"a": {"class_path": "Y", "init_args": {"q": 3}}})["a"] == {"class_path": "Y", "init_args": {"q": 3}}
    assert merged(below, {"l": [3], "m": {"o": 2}}) == {**below, "l": [3], "m": {"n": 1, "o": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: a.yaml\n", "circle"),
        ("base: nowhere.yaml\n", r"nowhere\.yaml does not exist"),
        ("base: [tiny.yaml]\n", "name of a configuration"),
    ],
)
def test_a_base_that_cannot_be_is_refused_in_a_sentence(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_full(tmp_path / "a.yaml")


def test_only_names_are_looked_for_in_the_package(tmp_path):
    for name in ("../tiny.yaml", str(tmp_path / "configs" / "tiny.yaml")):
        with pytest.raises(ConfigError, match="does not exist"):
            locate(tmp_path / name if name.startswith("..") else __import__("pathlib").Path(name))


def test_every_shipped_configuration_says_what_it_is_for(locus):
    assert all(yaml.safe_load(path.read_text()) for path in shipped().values())
    purposes = json.loads(locus("configs", "list", "--json")[1])
    assert all(len(purpose) > 20 for purpose in purposes.values())
