"""A disk that is full or gone, under loggers and under the pictures."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest
import torch
from tensorboard.summary.writer.record_writer import RecordWriter

from locus_lightning.callbacks import loggers
from tests.faults.conftest import RUN, after_a_step, checkpoint, locus_process  # noqa: F401
from tests.integration.conftest import coco_folder  # noqa: F401


def test_a_logger_that_cannot_write_is_a_warning_and_goes_on_later(locus, tmp_path, inject, caplog, monkeypatch):
    monkeypatch.setattr(loggers, "_AGAIN_S", 0.0)
    write, full = RecordWriter.write, []

    def may_fail(self, data):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", may_fail)

    def fill(trainer, module, samples):
        full.append(True)

    def free(self, trainer, *more, real=loggers.KeepLogging.on_train_batch_end):
        if trainer.global_step == 4:
            full.clear()

    monkeypatch.setattr(loggers.KeepLogging, "on_train_batch_end", free)
    status, _, err = locus("fit", *RUN, inject("rollout", 2, fill))
    assert status == 0, err
    assert any("TensorBoardLogger could not write ([Errno 28] No space left on device)" in r.getMessage() for r in caplog.records)
    assert torch.load(checkpoint(tmp_path, "locus"), weights_only=True)["global_step"] == 6
    assert len(list(checkpoint(tmp_path, "locus").parents[1].glob("events.out.tfevents*"))) >= 2, "a new event file was begun"


def test_when_all_pictures_are_gone_the_state_is_saved_first(locus, tmp_path, inject, coco_folder, caplog):  # noqa: F811
    import shutil

    shutil.copytree(coco_folder, tmp_path / "photos")

    def unmount(trainer, module, samples):
        shutil.rmtree(tmp_path / "photos" / "images")

    source = ["--data.source=CocoCues", f"--data.source.init_args.annotations={tmp_path / 'photos' / 'instances.json'}",
              f"--data.source.init_args.images={tmp_path / 'photos' / 'images'}", "--data.source.init_args.val_fraction=0.2",
              "--trainer.limit_val_batches=0"]  # fmt: skip
    options = [option for option in RUN if "train_size" not in str(option)]
    status, _, err = locus("fit", *options, *source, inject("rollout", 2, unmount))
    assert status == 2, err
    assert "pictures in a row cannot be used" in err
    assert "check that the picture folder is still there" in err
    assert "Traceback" not in err
    assert torch.load(checkpoint(tmp_path, "locus"), weights_only=True)["global_step"] == 4, "the rollout at hand was still used"
    shutil.copytree(coco_folder / "images", tmp_path / "photos" / "images")
    status, _, err = locus("fit", *options, *source, "--ckpt_path=last")
    assert status == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_sigterm_to_one_of_two_processes_stops_both(strategy, locus_process, tmp_path):  # noqa: F811
    process = locus_process("fit", *RUN, "--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.max_steps=10000",
                            "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=true")  # fmt: skip
    lines, child = after_a_step(process)
    os.kill(child, signal.SIGTERM)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 143, "".join(lines) + rest
    for _ in range(300):  # it has saved with the other one, and is on its way out
        if not os.path.exists(f"/proc/{child}"):
            break
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{child}")
    saved = torch.load(checkpoint(tmp_path, "locus"), weights_only=True)
    assert len(saved["locus"]["ranks"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_picture_that_is_broken_for_one_process_stops_neither(strategy, locus_process, coco_folder, tmp_path):  # noqa: F811
    """Each picture is met by one of two processes; filtered groups are among the others."""
    import json
    import shutil

    shutil.copytree(coco_folder, tmp_path / "photos")
    (tmp_path / "photos" / "images" / "3.jpg").write_bytes(b"no picture")
    source = ["--data.source=CocoCues", f"--data.source.init_args.annotations={tmp_path / 'photos' / 'instances.json'}",
              f"--data.source.init_args.images={tmp_path / 'photos' / 'images'}", "--data.source.init_args.val_fraction=0.2",
              '--data.source.init_args.cue_sampler={"class_path": "ObjectCues", "init_args": {"mix": {"tiny": 0.5, "small": 0.5}}}',
              "--model.filter_groups=true", "--model.resample=1", "--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.limit_val_batches=1"]  # fmt: skip
    options = [option for option in RUN if "train_size" not in str(option)]
    process = locus_process("fit", *options, *source)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.rglob("summary.json"))
    assert summary["steps"] == 6
    assert [path.rpartition("/")[2] for path in summary["data"]["quarantined"]] == ["3.jpg"], summary["data"]
