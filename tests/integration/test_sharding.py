"""Training with weights in pieces (``trainer.strategy: fsdp2``) against ``ddp``, on two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
SCENES = ROOT / "tests" / "configs" / "scenes_llava.yaml"
LORA = ROOT / "tests" / "configs" / "lora_onevision.yaml"

REWARD = """
from locus_lightning import Reward

class VariedReward(Reward):
    def score(self, completion, sample):
        return float(completion.generation.ids_T.sum() % 7) / 7
"""
TWO = ["--trainer.devices=2", "--trainer.val_check_interval=2", "--checkpoints.every_n_steps=1", "--model.optimizer=torch.optim.AdamW",
       "--model.optimizer.lr=1e-2", "--trainer.gradient_clip_val=1.0"]  # fmt: skip
VARIED = '--model.rewards=[{"class_path": "varied_sharded.py:VariedReward"}]'
ADAPTERS = ["--model.backbone.quantize=null", "--model.filter_groups=false", "--model.resample=0", "--trainer.precision=32-true"]


@pytest.fixture
def run(locus_process, tmp_path):
    """Run ``locus fit`` on two processes into a folder of its own."""
    (tmp_path / "varied_sharded.py").write_text(REWARD)

    def fit(name: str, *options: str) -> Path:
        process = locus_process("fit", *options, *TWO, "--trainer.logger=TensorBoardLogger", f"--trainer.logger.save_dir={name}")
        out, _ = process.communicate(timeout=280)
        assert process.returncode == 0, out
        (last,) = (tmp_path / name).rglob("last.ckpt")
        return last

    return fit


def difference(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.slow
def test_pieces_train_as_whole_weights_do_and_are_continued_validated_and_exported(run, locus, tmp_path):
    """All weights, a reference copy, rollouts used twice, clipping, the vision side too: four steps of ddp are two and two of fsdp2."""
    options = ["--config", str(SCENES), VARIED, "--model.backbone.train_vision=true", "--model.mask_truncated_completions=false"]
    expected = load(run("whole", *options, "--trainer.strategy=ddp", "--trainer.max_steps=4"))
    first = load(run("pieces", *options, "--trainer.strategy=fsdp2", "--trainer.max_steps=2"))
    last = run("pieces", *options, "--trainer.strategy=fsdp2", "--trainer.max_steps=4", "--ckpt_path=last")
    state = load(last)
    assert difference(first["state_dict"], state["state_dict"]) > 1e-3, "the weights never moved"
    assert difference(expected["state_dict"], state["state_dict"]) < 1e-4
    moments = [{str(n): row["exp_avg"] for n, row in one["optimizer_states"][0]["state"].items()} for one in (expected, state)]
    assert difference(*moments) < 1e-5
    assert difference(moments[0], {name: torch.zeros_like(value) for name, value in moments[0].items()}) > 1e-3

    folder = last.parent.parent
    model = load_file(folder / "model" / "model.safetensors")
    trained = {name.removeprefix("backbone.model."): value for name, value in state["state_dict"].items()}
    shared = model.keys() & trained.keys()
    assert len(shared) > 10
    assert all(torch.equal(model[name], trained[name]) for name in shared), "model/ holds the whole weights of the last step"
    status, _, err = locus("validate", *options, "--trainer.strategy=auto", "--trainer.devices=1", f"--ckpt_path={last}")
    assert status == 0, err
    status, _, err = locus("export", str(folder), "exported", "--dtype", "float32")
    assert status == 0, err
    assert json.loads((folder / "summary.json").read_text())["steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_adapters_train_in_pieces_of_a_model(run, precision):
    """With gradient checkpointing, and the adapter beside the checkpoint as peft reads it."""
    options = ["--config", str(LORA), VARIED, *ADAPTERS, f"--trainer.precision={precision}", "--trainer.max_steps=3"]
    paths = [run(name, *options, f"--trainer.strategy={name}") for name in ("ddp", "fsdp2")]
    expected, state = (load(path)["state_dict"] for path in paths)
    adapters = [load_file(path.parent / "last-adapter" / "adapter_model.safetensors") for path in paths]
    bound = 1e-4 if precision == "32-true" else 3e-2  # AdamW's first steps are as long for a small gradient as for a large one
    assert difference(expected, state) < bound
    assert difference(*adapters) < bound
    assert max(float(value.abs().max()) for name, value in adapters[1].items() if "lora_B" in name) > 5e-3, "the adapter never moved"
    assert {value.dtype for value in adapters[1].values()} == {torch.float32}


@pytest.mark.slow
def test_supervised_training_takes_the_same_passes_everywhere(run):
    options = ["--config", str(ROOT / "tests" / "configs" / "supervised_qwen.yaml"), "--trainer.max_steps=3"]
    expected, state = (load(run(name, *options, f"--trainer.strategy={name}"))["state_dict"] for name in ("ddp", "fsdp2"))
    assert difference(expected, state) < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--model.backbone.quantize=nf4"], "quantize nf4: 4-bit weights cannot be cut into pieces"),
     (["--model.backbone.quantize=null", "--model.optimizer=bitsandbytes.optim.AdamW8bit"], "AdamW8bit, which does not know weights in pieces"),
     (["--model.backbone.quantize=null", "--model.optimizer=torch.optim.Adafactor", "--model.optimizer.lr=1e-3"], "Adafactor, which does not know"),
     (["--model.backbone.quantize=null", "--model.rollout=VLLMRollout"], "fsdp2 with VLLMRollout")],
)  # fmt: skip
def test_what_does_not_go_with_pieces_is_refused_before_weights_load(locus, options, message):
    status, _, err = locus("fit", "--config", LORA, "--trainer.strategy=fsdp2", *options)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["backbone.quantize", "backbone.lora.targets", "backbone.init_args.lora", "objective.dual_clip"])
def test_a_null_on_the_command_line_is_a_null(locus, option):
    """jsonargparse alone makes the word "None" of it."""
    status, out, err = locus("fit", "--config", LORA, "--model.backbone.quantize=null", f"--model.{option}=null", "--print_config")
    assert status == 0, err
    settings = yaml.safe_load(out)["model"]["init_args"]
    for name in option.replace("init_args.", "").split("."):
        settings = settings.get("init_args", settings)[name]
    assert settings is None


def test_preflight_measures_no_single_process_of_many(locus):
    for strategy in ("fsdp2", "locus_lightning.training.sharding.FSDP2Strategy"):
        status, _, err = locus("preflight", "--config", LORA, "--model.backbone.quantize=null", f"--trainer.strategy={strategy}")
        assert status == 2
        assert "locus preflight measures one process" in err
