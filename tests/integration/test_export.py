"""From a run folder to a model that anybody can load; and the look before a run."""

from __future__ import annotations

import json

import pytest
import torch

from tests.integration.conftest import ROOT

CONFIGS = ROOT / "tests" / "configs"


@pytest.fixture
def trained(locus, tmp_path):
    """A run on a base that lies on disk, its trained weights made large enough to matter."""

    def fit(config: str, family: str, *options: str):
        assert locus("toy", family, "base")[0] == 0
        status, _, err = locus("fit", "--config", CONFIGS / config, "--model.backbone.checkpoint=base", *options)
        assert status == 0, err
        (run,) = (tmp_path / "runs" / "locus").iterdir()
        path = run / "checkpoints" / "last.ckpt"
        content = torch.load(path, weights_only=True)
        torch.manual_seed(1)
        for name, value in content["state_dict"].items():
            if "lora_B" in name or "lora" not in name:
                value += 0.05 * torch.randn_like(value)
        torch.save(content, path)
        return run

    return fit


def logits(model, processor):
    from PIL import Image

    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}], add_generation_prompt=True
    )
    inputs = processor(text=[text], images=[Image.new("RGB", (90, 60), (200, 30, 30))], return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[0, -1]


def test_adapters_merged_and_alone_say_the_same_and_not_what_the_base_says(locus, tmp_path, trained):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run = trained("lora_onevision.yaml", "llava_onevision")
    status, out, err = locus("export", run, "merged", "--dtype", "float32")
    assert status == 0, err
    assert "loaded again" in out
    assert "weights differ from base" in out
    assert locus("export", run, "adapter", "--adapter-only", "--dtype", "float32")[0] == 0
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    base, merged = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("base", "merged"))
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    before, after = logits(base, processor), logits(merged, processor)
    assert (before - after).abs().max() > 1e-2
    assert torch.allclose(after, logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), processor), atol=1e-4)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "base_model: base" in card
    assert "parse_rate" in card
    assert "SceneCues" in card


def test_a_model_whose_weights_all_trained_is_exported_in_16_bits(locus, tmp_path, trained):
    run = trained("supervised_qwen.yaml", "qwen2_5_vl")
    status, _, err = locus("export", run, "whole")
    assert status == 0, err
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_exports_that_cannot_be(locus, tmp_path, trained):
    run = trained("supervised_qwen.yaml", "qwen2_5_vl")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, message in (
        ((run, "full"), "full is not empty"),
        ((run / "checkpoints", "new"), "has no config.yaml"),
        ((run, "new", "--ckpt", "gone.ckpt"), "no checkpoint gone.ckpt"),
        ((run, "new", "--adapter-only"), "has no adapter"),
        ((run, "new", "--ckpt", run / "config.yaml"), "cannot be read as a training checkpoint"),
    ):
        status, _, err = locus("export", *arguments)
        assert status == 2
        assert message in err
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    from locus_lightning.backbones.qwen2_5_vl import Qwen2_5_VLBackbone

    base = Qwen2_5_VLBackbone("base")
    base.load()
    content["state_dict"] = {f"backbone.{n}": p for n, p in base.named_parameters()}
    torch.save(content, path)
    status, _, err = locus("export", run, "new", "--dtype", "float32")
    assert status == 2
    assert "nothing was trained" in err


@pytest.mark.parametrize("config", ["lora_onevision.yaml", "scenes_llava.yaml", "supervised_qwen.yaml"])
def test_preflight_tells_prompts_memory_and_time(locus, tmp_path, config):
    status, out, err = locus("preflight", "--config", CONFIGS / config, "--samples", "2", "--save", "look", "--card", "24")
    assert status == 0, err
    report = json.loads((tmp_path / "look" / "report.json").read_text())
    assert (tmp_path / "look" / "samples.png").stat().st_size > 1000
    assert len(report["samples"]) == 2
    assert min(sample["score"] for sample in report["samples"]) > 0.8
    memory = report["memory_bytes"]
    assert abs(memory["weights"]["computed"] / memory["weights"]["measured"] - 1) < 0.15
    assert memory["peak"]["measured"] > memory["weights"]["measured"]
    assert report["seconds_a_step"] > 0
    assert report["seconds_a_validation"] > 0
    assert report["validations"] >= 1
    assert f"with {report['validations']} validation" in " ".join(out.split())
    assert ("decoded together" in out) is ("prompts_at_once" in report) is ("supervised" not in config)
    assert "fits the card" in out
    assert not (tmp_path / "runs").exists(), "nothing else is written"
    assert ("adapters on" in out) is ("lora" in config)


@pytest.mark.parametrize(
    ("setting", "copies", "said"),
    [("dequantize=true", "dequantized", "copies of the 4-bit weights"), ("dequantize=false", None, "the 4-bit weights themselves"),
     ("merge_adapters=true", "merged", "copies of the weights with the adapters added")],
)  # fmt: skip
def test_preflight_says_what_decoding_multiplies_with(locus, tmp_path, setting, copies, said):
    settings = ["--model.backbone.quantize=nf4", "--model.rollout=HFRollout", f"--model.rollout.{setting}"]
    status, out, err = locus("preflight", "--config", CONFIGS / "lora_onevision.yaml", "--samples", "2", "--save", "look", *settings)
    assert status == 0, err
    report = json.loads((tmp_path / "look" / "report.json").read_text())
    assert report["copies"] == copies
    assert f"decoding multiplies with {said}" in " ".join(out.split())
    assert ("rollout: copies of weights" in report["memory_bytes"]) is (copies is not None)


def test_preflight_says_when_the_card_is_too_small(locus):
    status, out, _ = locus("preflight", "--config", CONFIGS / "scenes_llava.yaml", "--save", "look", "--card", "0.0001")
    assert status == 1
    assert "does not fit" in out
