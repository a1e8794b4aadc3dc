"""What is kept, what a full disk does, which files are refused, and who may write."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import signal
import time

import pytest
import torch
import yaml

from locus_lightning.callbacks import checkpoints
from locus_lightning.callbacks.run_folder import RunLock
from tests.faults.conftest import ROOT, RUN, assert_same_end, checkpoint, send, weights

LORA = ["--config", ROOT / "tests" / "configs" / "lora_onevision.yaml", "--trainer.limit_val_batches=1"]


def full_disk(trainer, *_):
    """From now on nothing can be written into the folder of checkpoints."""

    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    trainer.strategy.save_checkpoint = fails


def test_the_last_two_and_the_best_are_kept(locus, tmp_path):
    status, _, err = locus("fit", *RUN, "--checkpoints.every_n_steps=1")
    assert status == 0, err
    folder = checkpoint(tmp_path, "locus").parent
    steps = {file.stem: torch.load(file, weights_only=True)["global_step"] for file in folder.glob("*.ckpt")}
    assert steps["last"] == 6
    assert steps["previous-1"] == 5
    assert steps["best"] in (2, 4, 6)
    assert not list(folder.glob("*.writing*"))
    best = torch.load(folder / "best.ckpt", weights_only=True)
    assert not best["locus"]["validation_due"], "the best was saved after its validation"
    status, _, err = locus("fit", *RUN, "--ckpt_path", folder / "best.ckpt", "--trainer.logger.init_args.name=again")
    assert status == 0, err
    assert_same_end(folder / "last.ckpt", checkpoint(tmp_path, "again"))


def test_a_crash_between_two_moves_leaves_a_last_checkpoint(locus, tmp_path, monkeypatch):
    """The machine dies after the older files have moved on, and before the new one is in its place."""
    status, _, err = locus("fit", *RUN, "--trainer.max_steps=2", "--checkpoints.every_n_steps=1")
    assert status == 0, err
    real = checkpoints._move

    def dies(source, place):
        if place.name == "last.ckpt":
            raise SystemError("the machine dies here")
        real(source, place)

    monkeypatch.setattr(checkpoints, "_move", dies)
    with pytest.raises(SystemError):
        locus("fit", *RUN, "--checkpoints.every_n_steps=1", "--ckpt_path=last")
    monkeypatch.setattr(checkpoints, "_move", real)
    assert torch.load(checkpoint(tmp_path, "locus"), weights_only=True)["global_step"] == 2
    status, _, err = locus("fit", *RUN, "--checkpoints.every_n_steps=1", "--ckpt_path=last")
    assert status == 0, err


def test_more_or_fewer_can_be_kept(locus, tmp_path):
    options = ["--checkpoints.every_n_steps=1", "--checkpoints.keep_last=3", "--checkpoints.keep_best=false"]
    assert locus("fit", *RUN, *options)[0] == 0
    folder = checkpoint(tmp_path, "locus").parent
    assert {file.stem for file in folder.glob("*.ckpt")} == {"last", "previous-1", "previous-2"}
    status, _, err = locus("fit", *RUN, "--checkpoints.keep_last=0")
    assert status == 2
    assert "keep_last 0 (at least 1)" in err


def test_an_adapter_lies_beside_its_checkpoint_and_peft_loads_it(locus, tmp_path, monkeypatch):
    from peft import PeftConfig
    from safetensors.torch import load_file

    status, _, err = locus(
        "fit", *LORA, "--checkpoints.every_n_steps=1", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e-2"
    )
    assert status == 0, err
    folder = next(tmp_path.rglob("last.ckpt")).parent
    for name in ("last", "previous-1"):
        tensors = load_file(folder / f"{name}-adapter" / "adapter_model.safetensors")
        assert tensors
        assert PeftConfig.from_pretrained(str(folder / f"{name}-adapter")).r
        kept = weights(folder / f"{name}.ckpt")
        for key, value in tensors.items():
            (same,) = [v for k, v in kept.items() if k.replace(".default", "").endswith(key.removeprefix("base_model.model."))]
            assert torch.equal(value, same.to(value.dtype)), key


def test_a_full_disk_is_a_warning_and_the_next_save_tries_again(locus, tmp_path, inject, caplog):
    broken = {}

    def fill(trainer, module, samples):
        broken["save"] = trainer.strategy.save_checkpoint
        full_disk(trainer, module)

    class Frees(checkpoints.Checkpoints):
        """Makes room again after the fourth step."""

    def on_train_batch_end(self, trainer, *more, real=checkpoints.Checkpoints.on_train_batch_end):
        if trainer.global_step == 5 and "save" in broken:
            trainer.strategy.save_checkpoint = broken.pop("save")
        real(self, trainer, *more)

    checkpoints.Checkpoints.on_train_batch_end, real = on_train_batch_end, checkpoints.Checkpoints.on_train_batch_end
    try:
        status, _, err = locus("fit", *RUN, "--checkpoints.every_n_steps=1", inject("rollout", 2, fill))
    finally:
        checkpoints.Checkpoints.on_train_batch_end = real
    assert status == 0, err
    said = [r.getMessage() for r in caplog.records if "could not be saved" in r.getMessage()]
    assert said
    assert "No space left on device" in said[0]
    assert torch.load(checkpoint(tmp_path, "locus"), weights_only=True)["global_step"] == 6
    assert not list(checkpoint(tmp_path, "locus").parent.glob("*.writing*"))


def test_a_disk_that_stays_full_ends_in_a_sentence_with_the_old_checkpoint_whole(locus, tmp_path, inject):
    status, _, err = locus("fit", *RUN, "--checkpoints.every_n_steps=2", inject("rollout", 2, full_disk))
    assert status == 2
    assert "the state of the last step could not be written to" in err
    assert "the newest checkpoint there is of step 2" in err
    assert "Traceback" not in err
    assert torch.load(checkpoint(tmp_path, "locus"), weights_only=True)["global_step"] == 2


DAMAGES = {
    "cut off": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "cannot be read as a training checkpoint"),
    "empty": (lambda p: p.write_bytes(b""), "cannot be read as a training checkpoint"),
    "text": (lambda p: p.write_text("hello"), "cannot be read as a training checkpoint"),
    "pickled": (lambda p: p.write_bytes(pickle.dumps(RunLock)), "cannot be read as a training checkpoint"),
    "a list": (lambda p: torch.save([1, 2], p), "is not a training checkpoint"),
    "another's": (lambda p: torch.save({"state_dict": {}}, p), "was not written by locus"),
    "not finite": (lambda p: torch.save(with_nan(torch.load(p, weights_only=True)), p), "holds weights that are not finite"),
    "no optimiser": (
        lambda p: torch.save({**torch.load(p, weights_only=True), "optimizer_states": []}, p),
        "holds no state of the optimiser",
    ),
}


def with_nan(content):
    next(iter(content["state_dict"].values())).view(-1)[0] = float("nan")
    return content


@pytest.mark.parametrize(
    ("command", "damage"),
    [*(("fit", damage) for damage in DAMAGES if damage != "not finite"), ("validate", "cut off"), ("validate", "another's"),
     ("export", "cut off"), ("export", "pickled"), ("export", "not finite")],
)  # fmt: skip
def test_a_damaged_checkpoint_is_a_sentence(locus, tmp_path, damaged_run, damage, command):
    shutil.copytree(damaged_run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    inflict, message = DAMAGES[damage]
    inflict(path)
    arguments = ["export", tmp_path / "run", tmp_path / "exported"] if command == "export" else [command, *RUN, "--ckpt_path", path]
    status, _, err = locus(*arguments)
    assert status == 2, err
    assert message in err
    assert "Traceback" not in err
    assert len(err) < 420, err
    assert not (tmp_path / "exported").exists(), "nothing is written"


@pytest.fixture(scope="session")
def damaged_run(whole_run):
    return whole_run.parents[1]


def test_a_run_whose_config_is_no_yaml_is_a_sentence(locus, tmp_path, damaged_run):
    shutil.copytree(damaged_run, tmp_path / "run")
    for content in ("a: [1, 2", "- just\n- a list\n", ""):
        (tmp_path / "run" / "config.yaml").write_text(content)
        status, _, err = locus("export", tmp_path / "run", tmp_path / "exported")
        assert status == 2
        assert "config.yaml" in err
        assert "Traceback" not in err
    (tmp_path / "run" / "config.yaml").write_text((damaged_run / "config.yaml").read_text())
    (tmp_path / "run" / "summary.json").write_text("")
    status, _, err = locus("export", tmp_path / "run", tmp_path / "exported", "--dtype", "float32")
    assert status == 0, "an empty summary, as a full disk leaves it, is no reason not to export\n" + err


@pytest.mark.slow
def test_two_runs_in_one_folder_are_refused(locus, locus_process, tmp_path, inject):
    assert locus("fit", *RUN, inject("rollout", 2, send(signal.SIGTERM)))[0] == 143
    process = locus_process("fit", *RUN, "--ckpt_path=last", "--trainer.max_steps=10000", "--trainer.limit_val_batches=0")
    lock = tmp_path / "runs" / "locus" / "version_0" / "lock"
    try:
        for _ in range(2400):
            if lock.exists() and lock.read_text():
                break
            time.sleep(0.1)
        status, _, err = locus("fit", *RUN, "--ckpt_path=last")
        assert status == 2
        assert f"is being trained in by process {process.pid}" in err
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert locus("fit", *RUN, "--ckpt_path=last")[0] == 0, "the lock of a killed process is none"


CHANGED = [
    (["--model.optimizer.lr=5e-4"], "optimizer.lr 0.001 -> 0.0005"),
    (["--model.objective.clip_low=0.1"], "model.objective.clip_low 0.2 -> 0.1"),
    (["--model.sampling.max_new_tokens=5"], "model.sampling.max_new_tokens 6 -> 5"),
]


@pytest.mark.parametrize(("options", "said"), CHANGED)
def test_a_setting_that_can_change_on_resume_does_and_is_said(locus, tmp_path, inject, caplog, options, said):
    assert locus("fit", *RUN, inject("rollout", 4, send(signal.SIGTERM)))[0] == 143
    caplog.set_level("INFO", "locus_lightning")
    status, _, err = locus("fit", *RUN, *options, "--ckpt_path=last")
    assert status == 0, err
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("changed from step 4 on")]
    assert said in line
    group = torch.load(checkpoint(tmp_path, "locus"), weights_only=True)["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == (5e-4 if "lr" in options[0] else 1e-3)


def test_nothing_is_said_where_nothing_changed(locus, inject, caplog):
    assert locus("fit", *RUN, inject("rollout", 4, send(signal.SIGTERM)))[0] == 143
    caplog.set_level("INFO", "locus_lightning")
    assert locus("fit", *RUN, "--ckpt_path=last")[0] == 0
    assert not [r.getMessage() for r in caplog.records if "changed from step" in r.getMessage()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.batch_size=4"], "data.batch_size 2 -> 4"),
        (["--data.seed=5"], "data.seed 0 -> 5"),
        (["--model.num_iterations=4"], "model.num_iterations 2 -> 4"),
        (["--model.optimizer=torch.optim.SGD"], "optimizer AdamW -> SGD"),
        (["--data.source.init_args.train_size=44"], "data.train_samples 40 -> 44"),
        (["--trainer.accumulate_grad_batches=1"], "trainer.accumulate_grad_batches 2 -> 1"),
    ],
)
def test_a_setting_that_cannot_change_on_resume_is_refused(locus, stopped_run, options, message):
    status, _, err = locus("fit", *RUN, *options, "--ckpt_path", stopped_run)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


@pytest.fixture(scope="session")
def stopped_run(whole_run):
    return whole_run


def test_loggers_that_number_no_runs_leave_each_run_its_folder(locus, tmp_path):
    for number in range(2):
        status, _, err = locus("fit", *RUN, "--trainer.max_steps=1", "--trainer.logger=false")
        assert status == 0, err
        folder = tmp_path / "runs" / "locus" / f"version_{number}"
        assert {"config.yaml", "summary.json", "model", "checkpoints"} <= {p.name for p in folder.iterdir()}
    status, _, err = locus("fit", *RUN, "--trainer.max_steps=2", "--trainer.logger=false", "--ckpt_path=last")
    assert status == 0, err
    assert not (tmp_path / "runs" / "locus" / "version_2").exists()
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


def test_a_csv_loggers_earlier_metrics_survive_a_resume(locus, tmp_path):
    csv = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs", "--trainer.logger.name=csv"]
    assert locus("fit", *RUN, *csv, "--trainer.max_steps=2")[0] == 0
    status, _, err = locus("fit", *RUN, *csv, "--ckpt_path=last")
    assert status == 0, err
    folder = tmp_path / "runs" / "csv" / "version_0"
    assert [p.name for p in sorted((tmp_path / "runs" / "csv").iterdir())] == ["version_0"]
    assert (folder / "metrics.csv").is_file()
    assert (folder / "metrics-1.csv").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())
