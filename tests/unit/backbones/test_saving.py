"""What lies in a saved folder: the base's own files, all that was trained, and nothing that another reader stumbles over."""

from __future__ import annotations

import json
import stat

import pytest
import torch

from locus_lightning.backbones import checkpoint as checkpoint_files
from locus_lightning.backbones import saved
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.open import open_model
from locus_lightning.boxes import BoxFrame
from locus_lightning.errors import CheckpointError, ConfigError
from locus_lightning.rollout.base import SamplingParams, generate_checked
from locus_lightning.rollout.hf import HFRollout
from tests.conftest import FAMILIES, contents


@pytest.fixture
def base(toy_folder, tmp_path):
    """A base checkpoint in the layout of an older library: its own field names, an extra tokenizer file, a note in its processor."""
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(toy_folder("llava"), folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    config |= {"torch_dtype": "float16", "rope_theta": 10000.0, "a_field_of_old": {"kept": [1, 2]}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("of old\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "a_note": "kept"}))
    return folder


def test_files_that_training_never_touches_are_the_bases_own(base, tmp_path):
    backbone = FAMILIES["llava"](str(base))
    backbone.load()
    backbone.save_pretrained(tmp_path / "saved")
    for path in base.iterdir():
        copy = tmp_path / "saved" / path.name
        if path.suffix == ".safetensors":
            continue
        assert copy.is_file(), path.name
        if path.name != "config.json":
            assert copy.read_bytes() == path.read_bytes(), path.name
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    expected = json.loads((base / "config.json").read_text()) | {"torch_dtype": "float32"}
    assert {k: v for k, v in config.items() if not isinstance(v, dict)} == {k: v for k, v in expected.items() if not isinstance(v, dict)}
    assert config["a_field_of_old"] == {"kept": [1, 2]}
    for weights in (tmp_path / "saved").glob("*.safetensors"):
        assert stat.S_IMODE(weights.stat().st_mode) == 0o644


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_vision_weights_that_train_beside_an_adapter_are_saved_and_loaded(toy_folder, tmp_path, family, samples):
    backbone = FAMILIES[family](str(toy_folder(family)), lora=LoRA(rank=2, alpha=4), train_vision=True)
    backbone.load()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
    (prompt,) = backbone.encode(contents(backbone, samples[:1]))
    live = backbone.last_hidden(prompt)
    backbone.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / saved.BESIDE_ADAPTER).is_file()
    again = open_model(str(tmp_path / "model"), "float32", "cpu")
    (prompt,) = again.encode(contents(again, samples[:1]))
    torch.testing.assert_close(again.last_hidden(prompt), live, atol=1e-5, rtol=1e-4)
    (tmp_path / "model" / saved.BESIDE_ADAPTER).unlink()
    without = open_model(str(tmp_path / "model"), "float32", "cpu")
    (prompt,) = without.encode(contents(without, samples[:1]))
    assert (without.last_hidden(prompt) - live).abs().max() > 1e-3, "the vision weights matter"


def test_an_adapter_alone_brings_no_other_weights(toy_folder, tmp_path):
    backbone = FAMILIES["llava"](str(toy_folder("llava")), lora=LoRA(rank=2))
    backbone.load()
    backbone.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / saved.BESIDE_ADAPTER).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "is quantised .bitsandbytes., so its weights cannot be trained; set backbone.lora"),
        ({"lora": LoRA(2), "quantize": "nf4"}, "backbone.quantize is nf4, but .* is quantised already"),
        ({"lora": LoRA(2), "train_vision": True}, "backbone.train_vision is true, but .* is quantised already"),
    ],
)
def test_what_a_quantised_checkpoint_cannot_do_is_refused_before_it_loads(toy_folder, tmp_path, settings, message):
    folder = quantised(toy_folder, tmp_path)
    with pytest.raises(ConfigError, match=message):
        FAMILIES["llava"](str(folder), **settings).check()


def test_a_quantised_checkpoint_with_adapters_is_said(toy_folder, tmp_path, caplog):
    FAMILIES["llava"](str(quantised(toy_folder, tmp_path)), lora=LoRA(2)).check()
    assert "is quantised by its own (bitsandbytes), its vision side too" in caplog.text


def quantised(toy_folder, tmp_path):
    import shutil

    folder = tmp_path / "quantised"
    shutil.copytree(toy_folder("llava"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    )
    return folder


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused_before_weights_load(toy_folder, tmp_path, monkeypatch):
    import shutil

    folder = tmp_path / "short"
    shutil.copytree(toy_folder("llava"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 100
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("locus_lightning.backbones.loading.load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(CheckpointError, match=r"its tokenizer has \d+ ids and its model 100 embeddings"):
        FAMILIES["llava"](str(folder)).load()


def test_an_adapter_folder_is_no_checkpoint(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is an adapter without its base model; write the whole model first"):
        checkpoint_files.config_of(str(tmp_path), False)


def test_a_completion_that_overruns_the_context_is_refused(make_backbone, samples):
    backbone = make_backbone("llava")
    (prompt,) = backbone.encode(contents(backbone, samples[:1]))
    room = backbone.context()
    fits = room - len(prompt.ids_P)
    with pytest.raises(ConfigError, match=f"with max_new_tokens {fits + 1:,} is longer than the {room:,} tokens"):
        generate_checked(HFRollout(), backbone, [prompt], 1, SamplingParams(fits + 1))


def test_a_frame_may_put_y_first():
    plain = BoxFrame.thousandths((200, 100))
    swapped = BoxFrame(plain.image_size, plain.extent, plain.scale, y_first=True)
    box = (20.0, 10.0, 100.0, 80.0)
    assert plain.to_text(box) == "[100, 100, 500, 800]"
    assert swapped.to_text(box) == "[100, 100, 800, 500]"
    assert swapped.to_original((100, 100, 800, 500)) == box
