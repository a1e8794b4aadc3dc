"""Checkpoints: found, refused, saved, opened again."""

from __future__ import annotations

import json

import pytest
import torch

from locus_lightning.backbones import checkpoint as checkpoint_files
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.auto import AutoBackbone
from locus_lightning.backbones.generic import GenericBackbone
from locus_lightning.errors import CheckpointError, ConfigError
from locus_lightning.tasks.cue_search import CuePrompt, CueSearch
from tests.conftest import FAMILIES, contents, make_sample


def test_constructing_is_free_and_errors_are_sentences(tmp_path, toy_folder):
    llava = FAMILIES["llava"]
    with pytest.raises(CheckpointError, match="no folder here"):
        llava(str(tmp_path / "nothing")).check()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        llava(str(tmp_path)).check()
    with pytest.raises(CheckpointError, match="'qwen2_5_vl' model and LlavaBackbone speaks llava"):
        llava(str(toy_folder("qwen2_5_vl"))).check()
    with pytest.raises(CheckpointError, match="toy:llava"):
        llava("toy:nonsense").check()
    with pytest.raises(ConfigError, match=r"backbone\.lora"):
        llava("toy:llava", quantize="nf4")
    with pytest.raises(ConfigError, match="names 'nope', which is no linear layer; the language model has .*q_proj"):
        llava("toy:llava", lora=LoRA(targets=["nope"])).load()


def test_save_and_load_round_trip(make_backbone, family, tmp_path):
    backbone = make_backbone(family, seed=3)
    backbone.save_pretrained(tmp_path / "model")
    again = FAMILIES[family](str(tmp_path / "model"))
    again.check()
    again.load()
    prompts, answer = backbone.encode(contents(backbone, [make_sample()])), [[backbone.tokenize_answer("[1, 2, 3, 4]")]]
    before, _ = backbone.logps(prompts, answer)
    after, _ = again.logps(again.encode(contents(again, [make_sample()])), answer)
    assert torch.allclose(before, after, atol=1e-6)
    assert list((tmp_path / "model").glob("*.safetensors"))


def test_checkpoints_that_cannot_be_used_are_told_apart(tmp_path, toy_folder, make_backbone, monkeypatch):
    import json

    (tmp_path / "own").mkdir()
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "configuration_strange.StrangeConfig"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    with pytest.raises(CheckpointError, match="brings code of its own.*trust_remote_code"):
        AutoBackbone(str(tmp_path / "own"))
    (tmp_path / "own" / "config.json").write_text(json.dumps({"model_type": "strange"}))
    with pytest.raises(CheckpointError, match="does not know"):
        AutoBackbone(str(tmp_path / "own"))
    with pytest.raises(CheckpointError, match="is gated: accept its licence"):
        raise CheckpointError(f"x {checkpoint_files._why(OSError('You are trying to access a gated repo.'))}")
    for path in toy_folder("llava").iterdir():
        if path.name in ("config.json", "model.safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="processor files complete"):
        FAMILIES["llava"](str(tmp_path)).load()


def test_auto_becomes_the_backbone_of_the_family_and_says_so(family, caplog):
    caplog.set_level("INFO")
    made = AutoBackbone(f"toy:{family}", dtype="float64")
    assert type(made) is FAMILIES[family]
    assert made.dtype == torch.float64
    assert f"backbone: {FAMILIES[family].__name__}" in caplog.text


def test_a_llava_with_a_pixtral_tower_is_refused(toy_folder, tmp_path):
    config = json.loads((toy_folder("llava") / "config.json").read_text())
    config["vision_config"] = {"model_type": "pixtral", "image_size": 112, "patch_size": 14}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="Pixtral tower"):
        FAMILIES["llava"](str(tmp_path)).check()


def test_auto_hands_on_what_only_the_family_knows_and_refuses_the_unknown(toy_folder, tmp_path):
    assert AutoBackbone("toy:qwen2_vl", family={"max_pixels": 12_544}).max_pixels == 12_544
    with pytest.raises(ConfigError, match=r"backbone\.family.*nonsense"):
        AutoBackbone("toy:llava", family={"nonsense": 1})
    config = (toy_folder("gemma3") / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"model_type": "gemma3"', '"model_type": "paligemma"'))
    with pytest.raises(CheckpointError, match=r"'paligemma' model.*llava.*GenericBackbone.*frame"):
        AutoBackbone(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "settings", "model"),
    [("llava", {"coordinates": "pixels"}, None), ("qwen2_5_vl", {"max_pixels": 56 * 56 * 2}, None), ("llava_next", {"decimals": 2, "max_tiles": 2}, None),
     ("llava", {"frame": "original_pixels"}, GenericBackbone)],
)  # fmt: skip
def test_a_saved_folder_remembers_frame_and_prompt(tmp_path, family, settings, model):
    prompt = CuePrompt(before_image="One: ", instruction=" Where?")
    saved = (model or FAMILIES[family])(f"toy:{family}", **settings)
    saved.load()
    saved.save_pretrained(tmp_path, CueSearch(prompt).remember())
    again = AutoBackbone(str(tmp_path))
    again.check()
    again.load()
    assert type(again) is type(saved)
    task = CueSearch()
    task.adopt(again.remembers)
    assert task.prompt == prompt
    assert again.family_settings() == saved.family_settings()
    sample = make_sample()
    assert again.frame(sample.image.size) == saved.frame(sample.image.size)
    stated = CueSearch(CuePrompt())
    stated.adopt(again.remembers)
    assert stated.prompt == CuePrompt(), "what is asked for goes before what is remembered"


def test_a_folder_cannot_name_code_to_run(tmp_path, toy_folder):
    for path in toy_folder("llava").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "locus.json").write_text('{"backbone": "antigravity.geohash", "family": {}, "prompt": {}}')
    assert type(AutoBackbone(str(tmp_path))) is FAMILIES["llava"]
    (tmp_path / "locus.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not the record of a saved backbone"):
        AutoBackbone(str(tmp_path))


def test_every_adapter_target_has_to_match(make_backbone):
    with pytest.raises(ConfigError, match=r"names 'v_porj', which is no linear layer; .* Did you mean 'v_proj'\?"):
        make_backbone("llava", lora=LoRA(rank=2, targets=["q_proj", "v_porj"]))
    adapted = make_backbone("llava", lora=LoRA(rank=2, targets=["q_proj", "v_proj"])).adapted_layers()
    assert set(adapted) == {"q_proj", "v_proj"}


def test_one_broken_package_does_not_stop_the_others(monkeypatch, toy_folder, caplog, capsys):
    from locus_lightning import plugins
    from locus_lightning.backbones import auto
    from locus_lightning.cli.info import backbones_command

    broken = plugins.Plugin("backbones", "BrokenBackbone", "no_such_module:BrokenBackbone", "pack-a", "1.0")
    original = plugins.available
    monkeypatch.setattr(plugins, "available", lambda kind: [*original(kind), *([broken] if kind == "backbones" else [])])
    auto.speakers.cache_clear()
    assert type(AutoBackbone(str(toy_folder("llava")))) is FAMILIES["llava"]
    assert "BrokenBackbone" in caplog.text
    assert backbones_command([]) == 0
    assert "left out: the backbones plugin 'BrokenBackbone'" in capsys.readouterr().err
    auto.speakers.cache_clear()


def test_an_opened_model_is_loaded_straight_to_its_device(toy_folder, monkeypatch):
    """The map that transformers is given; there is no GPU here, so it is looked at and left out."""
    import transformers

    from locus_lightning.backbones.open import open_model

    maps, whole = [], transformers.AutoModelForImageTextToText.from_pretrained

    def loads(source, **options):
        maps.append(options.pop("device_map", None))
        return whole(source, **options)

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", loads)
    monkeypatch.setattr(FAMILIES["llava"], "to", lambda self, device: self)
    open_model(str(toy_folder("llava")), device="cuda:0")
    open_model(str(toy_folder("llava")), device="cpu")
    assert maps == [{"": torch.device("cuda:0")}, None]
