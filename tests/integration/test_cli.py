"""The command line as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import ClassVar

import lightning as L
import pytest
import torch
import yaml
from rich import get_console
from safetensors.torch import load_file

from tests.integration.conftest import ROOT, small

CONFIGS = sorted((ROOT / "tests" / "configs").glob("*.yaml"))
SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "studies")  # studies: test_study
SCENES = ROOT / "tests" / "configs" / "scenes_llava.yaml"
TINY = ROOT / "configs" / "tiny.yaml"


def run_folder(root: Path) -> Path:
    return sorted(root.rglob("summary.json"))[-1].parent


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_test_config_fits_from_start_to_summary(locus, tmp_path, config):
    status, out, err = locus("fit", "--config", config)
    assert status == 0, err
    folder = run_folder(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 2
    assert {"iou_before", "iou_after", "floor", "seed", "seconds", "versions"} <= summary.keys()
    assert summary["iou_before"] is not None
    assert (folder / "config.yaml").is_file()
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert list((folder / "model").glob("*.safetensors"))
    assert list(folder.glob("events.out.tfevents*"))
    assert "mean IoU" in out
    assert ("cold start" in summary["seconds"]) == (config.stem == "cold_start")


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_parses_and_opens_with_its_command(locus, config):
    status, out, err = locus("fit", "--config", config, "--print_config")
    assert status == 0, err
    assert yaml.safe_load(out)["model"]["class_path"].startswith("locus_lightning.")
    header = config.read_text().split("seed_everything")[0]
    assert "locus fit --config configs/" in header
    assert all(word in header for word in ("needs", "gives"))


def test_the_embedded_default_runs_end_to_end(locus, tmp_path):
    status, _, err = locus(
        "fit",
        "--config",
        TINY,
        *small(**{"data.batch_size": 4, "model.micro_batch_size": 4}),
        "--model.sampling.max_new_tokens=4",
        "--data.source.init_args.val_size=2",
    )
    assert status == 0, err
    summary = json.loads((run_folder(tmp_path) / "summary.json").read_text())
    assert summary["seconds"].keys() >= {"rollout", "update", "validation"}


@pytest.mark.parametrize(
    ("config", "family", "overrides"),
    [("llava.yaml", "llava_onevision", {}), ("qwen2_5_vl.yaml", "qwen2_5_vl", {"model.backbone.max_pixels": 12544})],
)
def test_a_24_gb_config_runs_on_a_cpu_with_paths_and_step_counts_overridden(
    locus, tmp_path, toy_folder, coco_folder, config, family, overrides
):
    status, _, err = locus(
        "fit",
        "--config",
        ROOT / "configs" / config,
        f"--model.backbone.checkpoint={toy_folder(family)}",
        f"--data.source.annotations={coco_folder / 'instances.json'}",
        f"--data.source.images={coco_folder / 'images'}",
        *small(**{"model.sampling.max_new_tokens": 4, "model.groups_per_step": 8, **overrides}),
    )
    assert status == 0, err
    assert (run_folder(tmp_path) / "model" / "adapter_model.safetensors").is_file()


def test_validate_test_and_predict_read_a_run(locus, tmp_path):
    assert locus("fit", "--config", SCENES)[0] == 0
    status, out, _ = locus("validate", "--config", SCENES, "--ckpt_path", "last")
    assert status == 0
    assert "ACC@0.75" in out
    assert "best answer without looking" in " ".join(out.replace("│", " ").split())
    figures = json.loads(Path(out.split("figures: ")[1].strip()).read_text())
    assert {"iou", "acc0.5", "parse_rate"} <= figures.keys()
    assert locus("test", "--config", SCENES, "--ckpt_path", "last")[0] == 0
    status, out, _ = locus("predict", "--config", SCENES, "--ckpt_path", "last")
    assert status == 0
    records = [json.loads(line) for line in Path(out.split("answers: ")[1].strip()).read_text().splitlines()]
    assert len(records) == 2
    assert {"id", "text", "box", "true_box", "iou", "size_bin"} <= records[0].keys()


def test_a_run_is_not_validated_twice_after_its_last_step(locus, tmp_path, monkeypatch):
    validated = []

    class Counts(L.Callback):
        def on_validation_start(self, trainer, pl_module):
            validated.append((trainer.sanity_checking, trainer.global_step))

    monkeypatch.setitem(sys.modules, "counting", types.SimpleNamespace(Counts=Counts))
    Counts.__module__ = "counting"
    status, _, err = locus("fit", "--config", SCENES, "--trainer.callbacks=counting.Counts", "--trainer.val_check_interval=4")
    assert status == 0, err
    assert validated == [(True, 0), (False, 2)]
    own = json.loads((run_folder(tmp_path) / "summary.json").read_text())["after"]
    assert locus("validate", "--config", SCENES, "--ckpt_path", "last")[0] == 0
    (path,) = tmp_path.rglob("figures.json")
    assert own == pytest.approx(json.loads(path.read_text()), abs=1e-5)


def test_a_saved_config_runs_again_with_full_class_paths(locus, tmp_path):
    assert locus("fit", "--config", SCENES)[0] == 0
    saved = run_folder(tmp_path) / "config.yaml"
    assert "class_path: locus_lightning.IoUReward" in saved.read_text()
    assert locus("fit", "--config", saved)[0] == 0


@pytest.mark.slow
def test_the_example_plugin_is_named_by_its_class(locus, locus_process, tmp_path):
    pytest.importorskip("locus_reward_giou")
    named = '--model.rewards=[{"class_path": "GIoUReward"}, {"class_path": "FormatReward"}]'
    process = locus_process("fit", "--config", SCENES, named, "--print_config")  # nothing has imported the plugin there
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    status, _, err = locus("fit", "--config", SCENES, '--model.rewards=[{"class_path": "GIoUReward"}, {"class_path": "FormatReward"}]')
    assert status == 0, err
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder(tmp_path)))
    events.Reload()
    assert {"reward/giou", "reward/format", "reward/total"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize(("task", "column"), [("JigsawTask", "places right"), ("RotationTask", "accuracy"), ("MultiCue", "mean IoU")])
def test_a_task_of_another_package_trains_and_is_evaluated(locus, tmp_path, task, column):
    rewards = '--model.rewards=[{"class_path": "AnswerReward"}, {"class_path": "FormatReward"}]'
    options = ["--config", SCENES, f"--model.task={task}", rewards, "--model.backbone.checkpoint=toy:llava"]
    status, out, err = locus("fit", *options)
    assert status == 0, err
    assert f"Held-out samples of {task}" in out
    assert column in out
    summary = json.loads((run_folder(tmp_path) / "summary.json").read_text())
    assert summary["task"] == task
    assert {"floor", "parse_rate", "samples"} <= summary["after"].keys()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder(tmp_path)))
    events.Reload()
    assert {"reward/answer", "rollout/floor", "rollout/parse_rate", "val/floor"} <= set(events.Tags()["scalars"])
    assert "cues" in events.Tags()["images"]
    status, out, err = locus("validate", *options, "--ckpt_path=last")
    assert status == 0, err
    assert column in out
    status, out, err = locus("fit", "--config", SCENES, "--model.task=RotationTask")
    assert status == 2
    assert "IoUReward scores box or boxes answers and RotationTask has degrees answers" in err


def test_what_is_logged(locus, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert locus("fit", "--config", SCENES)[0] == 0
    events = EventAccumulator(str(run_folder(tmp_path)))
    events.Reload()
    tags = events.Tags()
    expected = """reward/iou reward/format reward/total reward/std_in_group reward/frac_reward_zero_std rollout/iou rollout/iou_q10
    rollout/iou_q50 rollout/iou_q90 rollout/acc0.5 rollout/floor rollout/parse_rate rollout/area_ratio rollout/length rollout/truncated
    update/loss update/clip_low update/clip_high update/dual_clip update/ratio_max update/ratio_min update/kl update/entropy
    update/grad_norm update/lr speed/tokens_per_s speed/rollout_s speed/score_s speed/reference_s speed/update_s val/iou val/acc0.5
    val/acc0.75 val/floor val/parse_rate""".split()
    assert set(expected) <= set(tags["scalars"])
    assert "cues" in tags["images"]
    assert any(tag.startswith("completions") for tag in tags["tensors"])
    assert events.Scalars("val/iou")[0].step == 0, "before training"


# ---- mistakes: one clear sentence, exit status 2, before weights are loaded ------------------------------------------------


def broken(tmp_path, change):
    content = yaml.safe_load(SCENES.read_text())
    change(content)
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def model(content):
    return content["model"]["init_args"]


MISTAKES = {
    "wrong checkpoint": (lambda c: model(c)["backbone"]["init_args"].update(checkpoint="./nowhere"), "no folder here"),
    "unknown reward": (lambda c: model(c)["rewards"][0].update(class_path="IoURewrd"), "did you mean 'IoUReward'"),
    "unknown backbone": (lambda c: model(c)["backbone"].update(class_path="LavaBackbone"), "did you mean 'LlavaBackbone'"),
    "typo in a key": (lambda c: model(c).update(group_sise=4), "group_sise"),
    "typo at the top": (lambda c: c.update(modle={"group_size": 2}), "modle"),
    "wrong type": (lambda c: model(c).update(group_size="many"), "group_size"),
    "reward that does not fit": (
        lambda c: model(c).update(task={"class_path": "TaskMixture", "init_args": {"tasks": [{"class_path": "CueSearch"}]}}),
        "IoUReward scores box or boxes answers and TaskMixture has mixed answers; use AnswerReward",
    ),
    "unknown task": (lambda c: model(c).update(task={"class_path": "CueSerch"}), "did you mean 'CueSearch'"),
    "no reward": (lambda c: model(c).update(rewards=[]), "nothing would be optimised"),
    "G = 1": (lambda c: model(c).update(group_size=1), "group_size is 1"),
    "top-k with ratios": (lambda c: model(c)["sampling"].update(top_k=5), "top_k 5"),
    "batch does not divide": (lambda c: c["data"].update(batch_size=3), "not a multiple"),
    "more than there is": (lambda c: c["data"].update(batch_size=64), "only 8 training samples"),
    "clip bounds": (lambda c: model(c)["objective"]["init_args"].update(clip_low=2.0), "clip_low"),
    "no annotations": (
        lambda c: c["data"].update(source={"class_path": "CocoCues", "init_args": {"annotations": "no.json", "images": "."}}),
        "no.json does not exist",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_before_weights_load(locus, tmp_path, mistake, monkeypatch):
    change, message = MISTAKES[mistake]
    monkeypatch.setattr("locus_lightning.backbones.loading.load_model", lambda *a: pytest.fail("weights were loaded"))
    status, out, err = locus("fit", "--config", broken(tmp_path, change))
    assert status == 2
    sentences = [line for line in err.splitlines() if line.startswith("locus: ")]
    assert len(sentences) == 1
    assert message in sentences[0]
    assert "Traceback" not in out + err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_box_outside_its_image_is_named(locus, tmp_path, coco_folder):
    content = json.loads((coco_folder / "instances.json").read_text())
    content["annotations"][4]["bbox"] = [300, 10, 40, 40]
    (tmp_path / "bad.json").write_text(json.dumps(content))
    arguments = {"annotations": str(tmp_path / "bad.json"), "images": str(coco_folder / "images"), "bad_boxes": "refuse"}
    source = {"class_path": "CocoCues", "init_args": arguments}
    status, _, err = locus("fit", "--config", broken(tmp_path, lambda c: c["data"].update(source=source)))
    assert status == 2
    assert "annotation 10 has bbox [300, 10, 40, 40] in an image of 320x240" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "there is no command 'fitt'"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["fit", "--config", str(SCENES), "--ckpt_path", "last"], "no run under"),
        (["fit", "--config", str(SCENES), "--ckpt_path", "gone.ckpt"], "gone.ckpt does not exist"),
        (["fit", "--config", str(SCENES), "--model.backbone=Lava"], "no backbones plugin is called 'Lava'"),
        (["toy", "lava", "somewhere"], "toy:llava"),
        (["fit", "--config", str(SCENES), "--model.group_sise=1"], "'group_sise' is not accepted"),
        (["fit", "--config", str(SCENES), "--trainer.accelerator=cuda"], "the trainer refuses its settings"),
    ],
)
def test_mistakes_on_the_command_line(locus, arguments, message):
    status, _, err = locus(*arguments)
    assert status == 2
    assert message in err


def test_yaml_that_is_no_yaml(locus, tmp_path):
    (tmp_path / "x.yaml").write_text("model: [1,\ntrainer: 3")
    status, _, err = locus("fit", "--config", tmp_path / "x.yaml")
    assert status == 2
    assert "is not valid YAML" in err


# ---- light commands ------------------------------------------------------------------------------------------------------


def test_plugins_lists_without_importing_torch():
    code = (
        "import sys; from locus_lightning.cli.main import main\n"
        "try: main(['plugins', '--json'])\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {row["name"]: row for row in json.loads(done.stdout)}
    assert {"IoUReward", "FormatReward", "ObjectCues", "RandomCropCues", "LlavaBackbone", "Qwen2_5_VLBackbone"} <= names.keys()


def test_a_missing_file_is_said_before_the_libraries_load():
    code = (
        "import sys\nfrom locus_lightning.cli.main import main\n"
        "try:\n    main(['fit', '--config', 'nowhere.yaml'])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert (
        done.stderr.strip()
        == "locus: the configuration file nowhere.yaml does not exist (locus configs lists those that come with the package)."
    )


def test_help_and_version(locus):
    status, out, _ = locus("--help")
    assert status == 0
    assert "locus fit --config configs/tiny.yaml" in out
    assert locus("--version")[1].startswith("locus-lightning ")


def test_toy_writes_a_checkpoint_that_loads(locus, tmp_path):
    assert locus("toy", "qwen2_5_vl", tmp_path / "toy")[0] == 0
    assert (tmp_path / "toy" / "model.safetensors").is_file()
    status, _, err = locus("toy", "qwen2_5_vl", tmp_path / "toy")
    assert status == 2
    assert "not empty" in err


# ---- stopping and going on -----------------------------------------------------------------------------------------------


MOVES = ["--model.mask_truncated_completions=false", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e-3"]
"""Options under which every trained weight of the toy moves."""


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_ten_steps_equal_five_and_five(locus, tmp_path):
    """Resume in the middle of an epoch and of a rollout batch: data, generators, optimiser and buffer go on."""
    options = ["--model.init_args.num_iterations=3", "--data.source.init_args.train_size=20", "--trainer.num_sanity_val_steps=0"]
    options += ["--checkpoints.every_n_steps=0", "--trainer.limit_val_batches=0", "--model.init_args.warmup_ratio=0.0", *MOVES]
    options += ["--model.init_args.reference_sync.every_n_steps=2", "--model.init_args.reference_sync.mixing=0.5"]
    status, _, err = locus("fit", "--config", SCENES, *options, "--trainer.max_steps=10", "--trainer.logger.init_args.name=whole")
    assert status == 0, err
    half = {}
    for steps in (5, 10):
        resume = ["--ckpt_path=last"] if steps == 10 else []
        status, _, err = locus(
            "fit", "--config", SCENES, *options, f"--trainer.max_steps={steps}", "--trainer.logger.init_args.name=parts", *resume
        )
        assert status == 0, err
        half = half if steps == 10 else weights(next((tmp_path / "runs" / "parts").rglob("last.ckpt")))
    whole, parts = (weights(tmp_path / "runs" / name / "version_0" / "checkpoints" / "last.ckpt") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    different = [name for name in whole if not torch.equal(whole[name], parts[name])]
    assert not different
    trained = [name for name in whole if "language_model" in name and "reference" not in name]
    assert trained
    assert not [name for name in trained if torch.equal(whole[name], half[name])], "every trained weight moved between steps 5 and 10"


class Drawn(L.Callback):
    """Records the samples that training steps use; ``reason`` says what ends the run after three rollout batches."""

    seen: ClassVar[list[str]] = []
    reason: ClassVar[str] = ""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        Drawn.seen += [sample.id for sample in batch]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3 and Drawn.reason == "a callback":
            trainer.should_stop = True


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["max_steps", "max_steps at the end of a pass", "a callback", "max_epochs", "limit_train_batches"])
def test_no_sample_is_left_out_or_seen_twice_after_a_resume(locus, tmp_path, monkeypatch, reason):
    monkeypatch.setitem(sys.modules, "drawn", types.SimpleNamespace(Drawn=Drawn))
    monkeypatch.setattr(Drawn, "__module__", "drawn")
    size = 6 if reason in ("max_epochs", "max_steps at the end of a pass") else 10  # samples of a pass; two a step
    end = {
        "max_steps": ["--trainer.max_steps=3"],
        "max_steps at the end of a pass": ["--trainer.max_steps=3"],
        "max_epochs": ["--trainer.max_epochs=1"],
    }.get(reason, [])
    options = [f"--data.source.init_args.train_size={size}", "--trainer.limit_val_batches=0", "--trainer.callbacks=drawn.Drawn"]
    options += ["--model.num_iterations=1", "--trainer.accumulate_grad_batches=2", "--trainer.max_steps=-1", "--trainer.max_epochs=3"]
    options += ["--trainer.limit_train_batches=6"] if reason == "limit_train_batches" else []
    whole, parts = [], []
    for stops in ([None], [reason, None]):
        Drawn.seen = []
        for stop in stops:
            Drawn.reason = stop or ""
            more = [*end, f"--trainer.max_epochs={1 if stop in ('max_epochs', 'limit_train_batches') else 3}"] if stop else []
            resume = ["--ckpt_path=last"] if len(stops) == 2 and stop is None else []
            status, _, err = locus("fit", "--config", SCENES, *options, *more, *resume, f"--trainer.logger.init_args.name={len(stops)}")
            assert status == 0, err
            if stop:
                assert len(Drawn.seen) == 6, "stopped after three rollout batches"
        (whole if len(stops) == 1 else parts).extend(Drawn.seen)
    assert len(set(whole)) == len(whole) == 3 * (6 if reason == "limit_train_batches" else size)
    assert parts == whole


class SavesInside(L.Callback):
    """Saves after the first of two passes of an optimiser step."""

    batch: ClassVar[int] = 2

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.batch:
            trainer.save_checkpoint("inside.ckpt", weights_only=False)


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_checkpoint_from_inside_a_step_is_of_the_boundary_before_it(locus, tmp_path, monkeypatch, iterations):
    """Whoever saves, and when: the unfinished step is done again, and the run ends with the same weights."""
    monkeypatch.setitem(sys.modules, "inside", types.SimpleNamespace(SavesInside=SavesInside))
    monkeypatch.setattr(SavesInside, "__module__", "inside")
    options = ["--config", SCENES, *MOVES, "--trainer.max_steps=4", f"--model.num_iterations={iterations}", "--trainer.limit_val_batches=0"]
    monkeypatch.setattr(SavesInside, "batch", 4)  # the third step's first pass
    status, _, err = locus("fit", *options, "--trainer.callbacks=inside.SavesInside")
    assert status == 0, err
    inside = torch.load("inside.ckpt", weights_only=True)
    assert inside["global_step"] == 2
    status, _, err = locus("fit", *options, "--ckpt_path", "inside.ckpt")
    assert status == 0, err
    whole, resumed = (weights(tmp_path / "runs" / "locus" / f"version_{n}" / "checkpoints" / "last.ckpt") for n in (0, 1))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert [name for name in whole if not torch.equal(whole[name], inside["state_dict"][name])], "the weights moved in between"


def test_a_checkpoint_from_before_the_first_step_is_refused(locus, monkeypatch):
    monkeypatch.setitem(sys.modules, "inside", types.SimpleNamespace(SavesInside=SavesInside))
    monkeypatch.setattr(SavesInside, "__module__", "inside")
    monkeypatch.setattr(SavesInside, "batch", 0)
    assert locus("fit", "--config", SCENES, "--trainer.callbacks=inside.SavesInside")[0] == 0
    status, _, err = locus("fit", "--config", SCENES, "--ckpt_path", "inside.ckpt")
    assert status == 2
    assert "inside an optimiser step" in err
    assert locus("validate", "--config", SCENES, "--ckpt_path", "inside.ckpt")[0] == 0, "its weights can still be looked at"


def test_a_checkpoint_of_another_model_is_refused(locus, tmp_path):
    """Its weights would be left out, and the base model's figures reported as its own."""
    lora = ["--config", ROOT / "tests" / "configs" / "lora_onevision.yaml", "--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
    status, _, err = locus("fit", *lora)
    assert status == 0, err
    (other,) = tmp_path.rglob("last.ckpt")
    for command in ("validate", "fit"):
        status, _, err = locus(command, "--config", SCENES, "--ckpt_path", other)
        assert status == 2, command
        assert "the checkpoint does not fit toy:llava: it has weights that this model does not have" in err
    state = torch.load(other, weights_only=True)
    torch.save({**state, "state_dict": {}}, tmp_path / "empty.ckpt")
    status, _, err = locus("validate", *lora[:2], "--ckpt_path", "empty.ckpt")
    assert status == 2
    assert "it has no weights for" in err
    assert locus("validate", *lora[:2], "--ckpt_path", other)[0] == 0


class StopsInside(L.Callback):
    """Asks to stop after the first of two passes of the second optimiser step, as ``max_time`` may."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            trainer.should_stop = True


def test_a_stop_inside_a_step_waits_for_its_end(locus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stops", types.SimpleNamespace(StopsInside=StopsInside))
    monkeypatch.setattr(StopsInside, "__module__", "stops")
    assert locus("fit", "--config", SCENES, "--trainer.callbacks=stops.StopsInside", "--trainer.max_steps=9")[0] == 0
    assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["steps"] == 2
    status, _, err = locus("fit", "--config", SCENES, "--ckpt_path=last", "--trainer.max_steps=3")
    assert status == 0, err


def test_a_later_file_changes_settings_and_no_class(locus, tmp_path):
    supervised = ROOT / "tests" / "configs" / "supervised_qwen.yaml"
    overlays = {
        "checkpoint": (
            {"checkpoint": "toy:qwen2_5_vl"},
            lambda m: m["init_args"]["backbone"]["init_args"]["checkpoint"] == "toy:qwen2_5_vl",
        ),
        "short": ({"model": {"warmup_ratio": 0.25}}, lambda m: m["init_args"]["warmup_ratio"] == 0.25),
        "long": ({"model": {"init_args": {"warmup_ratio": 0.25}}}, lambda m: m["init_args"]["warmup_ratio"] == 0.25),
        "backbone": (
            {"model": {"backbone": {"max_pixels": 12544}}},
            lambda m: m["init_args"]["backbone"]["init_args"]["max_pixels"] == 12544,
        ),
    }
    for name, (content, holds) in overlays.items():
        (tmp_path / "over.yaml").write_text(yaml.safe_dump(content))
        status, out, err = locus("fit", "--config", supervised, "--config", "over.yaml", "--print_config")
        assert status == 0, (name, err)
        made = yaml.safe_load(out)["model"]
        assert made["class_path"].endswith("SupervisedModule"), name
        assert made["init_args"]["backbone"]["class_path"].endswith("Qwen2_5_VLBackbone"), name
        assert holds(made), name


def test_an_option_may_name_the_class_and_its_settings(locus, tmp_path):
    (tmp_path / "short.yaml").write_text(yaml.safe_dump({"checkpoint": "toy:qwen2_5_vl", "data": "data.yaml"}))
    (tmp_path / "data.yaml").write_text("source: {class_path: SceneCues}\nbatch_size: 3\n")
    named = ["--model.backbone=Qwen2_5_VLBackbone", "--model.backbone.checkpoint=toy:qwen2_5_vl", "--model.backbone.max_pixels=401408"]
    status, out, err = locus("fit", "--config", "short.yaml", *named, "--print_config")
    assert status == 0, err
    made = yaml.safe_load(out)
    assert made["model"]["init_args"]["backbone"]["init_args"]["max_pixels"] == 401408
    assert made["data"]["batch_size"] == 3, "a part in a file of its own lies beside the configuration"
    status, _, err = locus("fit", "--config", "short.yaml", "--model.backbone.max_pixels=a: b: c")
    assert status == 2
    assert "--model.backbone.max_pixels is 'a: b: c'" in err
    (tmp_path / "beside.yaml").write_text("checkpoint: toy:llava\nmodel: m.yaml\n")
    status, _, err = locus("fit", "--config", "beside.yaml")
    assert status == 2
    assert "state the checkpoint in that file" in err


def test_a_validation_interval_counts_optimiser_steps(locus, tmp_path, monkeypatch):
    validated = []

    class Notes(L.Callback):
        def on_validation_start(self, trainer, pl_module):
            validated.append(trainer.global_step)

    monkeypatch.setitem(sys.modules, "notes", types.SimpleNamespace(Notes=Notes))
    Notes.__module__ = "notes"
    options = [
        "--trainer.callbacks=notes.Notes",
        "--trainer.val_check_interval=2",
        "--trainer.max_steps=4",
        "--trainer.num_sanity_val_steps=0",
    ]
    assert locus("fit", "--config", SCENES, *options)[0] == 0
    assert validated == [2, 4], "with two passes a step"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.groups_per_step=3", "--model.micro_batch_size=2"], "it is a multiple of 1 process(es) x model.micro_batch_size 2"),
        (["--model.groups_per_step=4", "--trainer.accumulate_grad_batches=2"], "takes 4 passes an optimiser step, and"),
        (["--model.groups_per_step=4", "--trainer.accumulate_grad_batches=1"], "data.batch_size 2 is not a multiple of"),
    ],
)
def test_batch_geometries_that_contradict_are_one_sentence(locus, options, message):
    status, _, err = locus("fit", "--config", SCENES, *options)
    assert status == 2
    assert message in err


def test_groups_per_step_decides_the_rest(locus, tmp_path, caplog):
    caplog.set_level("INFO")
    options = ["--model.groups_per_step=4", "--model.micro_batch_size=2", "--data.batch_size=null", "--trainer.accumulate_grad_batches=1"]
    status, _, err = locus("fit", "--config", SCENES, *options)
    assert status == 0, err
    assert "4 prompts an optimiser step (1 process(es) x 2 passes of 2); a rollout batch of 4 prompts serves 2 step(s)" in caplog.text


def test_short_forms_mean_what_the_long_ones_do(locus, tmp_path):
    long = yaml.safe_load(SCENES.read_text())
    arguments = model(long)
    (tmp_path / "short.yaml").write_text(
        yaml.safe_dump(
            {**long, "checkpoint": "toy:llava", "model": {**arguments, "backbone": {"coordinates": "pixels", "dtype": "float64"}}}
        )
    )
    assert locus("fit", "--config", "short.yaml", "--trainer.max_steps=1", "--trainer.limit_val_batches=0")[0] == 0
    saved = yaml.safe_load(next(tmp_path.rglob("config.yaml")).read_text())
    backbone = model(saved)["backbone"]
    assert saved["model"]["class_path"].endswith("LocusModule")
    assert backbone["class_path"].endswith("AutoBackbone")
    assert backbone["init_args"]["family"] == {"coordinates": "pixels"}
    assert (backbone["init_args"]["checkpoint"], backbone["init_args"]["dtype"]) == ("toy:llava", "float64")
    status, _, err = locus("fit", "--config", "short.yaml", "--checkpoint", "./nowhere")
    assert status == 2
    assert "'./nowhere' is no folder here" in err
    both = {**long, "checkpoint": "a", "model": {**arguments, "backbone": {"checkpoint": "b"}}}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(both))
    status, _, err = locus("fit", "--config", "both.yaml")
    assert status == 2
    assert "names two checkpoints, a and b" in err


def test_a_run_that_ended_with_its_epoch_goes_on_with_the_next(locus, tmp_path):
    options = [
        "--data.source.init_args.train_size=4",
        "--trainer.limit_val_batches=1",
        "--trainer.max_steps=-1",
    ]  # 2 rollout batches, 4 steps
    for epochs, steps in ((1, 4), (2, 8)):
        resume = ["--ckpt_path=last"] if epochs == 2 else []
        status, _, err = locus("fit", "--config", SCENES, *options, f"--trainer.max_epochs={epochs}", *resume)
        assert status == 0, err
        assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["steps"] == steps


def test_the_progress_bar_counts_optimiser_steps(locus, monkeypatch):
    monkeypatch.setattr(get_console(), "_force_terminal", True)
    status, out, err = locus("fit", "--config", SCENES, "--trainer.enable_progress_bar=true")
    assert status == 0, err
    assert "2/2" in out + err
    assert "/8" not in out + err, "passes are not what a user counts"


def test_where_no_bar_shows_there_are_lines(locus, caplog):
    caplog.set_level("INFO", "locus_lightning")
    status, _, err = locus("fit", "--config", SCENES, "--trainer.enable_progress_bar=true", "--trainer.val_check_interval=1")
    assert status == 0, err
    lines = [record.getMessage() for record in caplog.records]
    assert any(re.match(r"step 1 of 2, iou 0\.\d+, .* s a step, .* left", line) for line in lines), lines
    assert any(re.match(r"step 2: val/iou 0\.\d+", line) for line in lines), lines


def test_lightnings_own_checkpoint_callback_from_yaml(locus, tmp_path):
    callback = '[{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "val/iou", "mode": "max", "filename": "best"}}]'
    status, _, err = locus("fit", "--config", SCENES, f"--trainer.callbacks={callback}", "--trainer.val_check_interval=2")
    assert status == 0, err
    assert list(tmp_path.rglob("best*.ckpt"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_finishes_the_step_saves_and_goes_on(locus_process, locus, tmp_path):
    process = locus_process(
        *("fit", "--config", SCENES, "--trainer.max_steps=4000", "--trainer.num_sanity_val_steps=0", "--checkpoints.every_n_steps=1")
    )
    deadline = time.time() + 400  # a busy machine takes minutes to start
    while not list(tmp_path.rglob("last.ckpt")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130, out
    assert "continue with" in out
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    reached = torch.load(checkpoint, weights_only=True)["global_step"]
    status, _, err = locus("fit", "--config", SCENES, f"--trainer.max_steps={reached + 2}", "--ckpt_path=last")
    assert status == 0, err
    assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["steps"] == reached + 2
    assert checkpoint.parent.parent == run_folder(tmp_path), "the same run folder"


@pytest.mark.slow
def test_two_processes_hold_the_same_weights(locus_process, tmp_path):
    process = locus_process(
        "fit",
        "--config",
        SCENES,
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.limit_val_batches=0",
    )
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    state = torch.load(next(iter(tmp_path.rglob("last.ckpt"))), weights_only=True)
    assert len(state["locus"]["ranks"]) == 2
    assert not torch.equal(*(rank["torch"] for rank in state["locus"]["ranks"])), "each rank samples for itself"


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_adapters_and_their_small_steps_survive_16_bit_precision(locus, tmp_path, caplog, precision):
    """Steps of 1e-5 round away in bfloat16: the adapters stay float32 under every precision."""
    caplog.set_level("INFO", "locus_lightning")
    lora = ["--config", ROOT / "tests" / "configs" / "lora_onevision.yaml", "--trainer.limit_val_batches=1", "--trainer.max_steps=2"]
    status, _, err = locus(
        "fit", *lora, f"--trainer.precision={precision}", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e-5"
    )
    assert status == 0, err
    state = weights(next(tmp_path.rglob("last.ckpt")))
    adapters = {name: value for name, value in state.items() if "lora_A" in name}
    assert adapters
    assert {value.dtype for value in adapters.values()} == {torch.float32}
    assert any((value != value.bfloat16().float()).any() for value in adapters.values())


def test_a_token_budget_leaves_the_validation_interval_alone(locus, tmp_path, monkeypatch):
    """Validation every second optimiser step, also where the budget doubles the passes of a step."""
    from locus_lightning.training.base import TaskModule

    seen = []
    real = TaskModule.on_validation_epoch_end
    monkeypatch.setattr(TaskModule, "on_validation_epoch_end", lambda self: (seen.append(self.global_step), real(self))[1])
    options = ["--model.micro_batch_size=2", "--model.token_budget=10", "--trainer.accumulate_grad_batches=1", "--model.num_iterations=1"]
    status, _, err = locus("fit", "--config", SCENES, *options, "--trainer.max_steps=4", "--trainer.val_check_interval=2",
                           "--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=1")  # fmt: skip
    assert status == 0, err
    assert seen == [2, 4]


@pytest.mark.slow
def test_the_papers_setting_is_trained_continued_validated_and_exported(locus, locus_process, coco_folder, toy_folder, tmp_path):
    """On a toy of its family, two processes and its own strategy: all weights, rollout batches of several steps, a reference copy."""
    shutil.copytree(toy_folder("qwen2_5_vl"), tmp_path / "base")
    data = [f"--data.source.annotations={coco_folder}/instances.json", f"--data.source.images={coco_folder}/images", "--data.source.train_size=16",
            "--data.source.val_size=4", '--data.source.cue_sampler={"class_path": "ObjectCues", "init_args": {"mix": {"tiny": 0.5, "small": 0.5}}}',
            "--data.source.val_fraction=0.25", "--data.num_workers=0", "--data.val_batch_size=2"]  # fmt: skip
    smaller = ["--checkpoint=base", "--model.groups_per_step=4", "--data.batch_size=4", "--model.sampling.max_new_tokens=6", "--model.group_size=4",
               "--model.validation.max_new_tokens=6", "--model.backbone.min_pixels=3136", "--model.backbone.max_pixels=12544",
               "--model.optimizer.lr=1e-3", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]  # fmt: skip
    two = ["--trainer.devices=2", "--trainer.val_check_interval=2", "--checkpoints.every_n_steps=1"]
    config = ["--config", str(ROOT / "configs" / "paper.yaml")]
    for steps, more in ((2, []), (4, ["--ckpt_path=last"])):
        process = locus_process("fit", *config, *smaller, *data, *two, f"--trainer.max_steps={steps}", *more)
        out, _ = process.communicate(timeout=280)
        assert process.returncode == 0, out
    run = tmp_path / "runs/paper/version_0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 4
    assert "a rollout batch of 8 prompts serves 2 step(s)" in out
    status, out, err = locus(
        "validate", *config, *smaller, *data, "--trainer.devices=1", "--trainer.strategy=auto", f"--ckpt_path={run}/checkpoints/last.ckpt"
    )
    assert status == 0, err
    status, out, err = locus("export", str(run), "exported", "--dtype", "float32")
    assert status == 0, err
    assert "loaded again" in out
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "base", tmp_path / "exported"))
    assert any(not torch.equal(before[name], after[name]) for name in before if name in after), "the weights never moved"


def test_a_checkpoint_of_deepspeed_is_named(locus, tmp_path):
    (tmp_path / "last.ckpt").mkdir()
    status, _, err = locus("fit", "--config", SCENES, "--ckpt_path=last.ckpt")
    assert status == 2
    assert "is a folder that DeepSpeed wrote" in err
