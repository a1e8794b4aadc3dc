"""A run that is told to stop saves its state, says so by its exit status, and goes on to the same end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.faults.conftest import RUN, after_a_step, assert_same_end, checkpoint, send

CASES = [
    *((hook, step, (signal.SIGTERM,), 143) for hook, step in (("rollout", 2), ("update", 3), ("validation", 2), ("step end", 4))),
    ("rollout", 2, (signal.SIGHUP,), 129),
    ("update", 2, (signal.SIGUSR1,), 138),
    ("rollout", 2, (signal.SIGINT,), 130),
    ("validation", 2, (signal.SIGINT,), 130),
    ("rollout", 2, (signal.SIGINT, signal.SIGINT), 130),
]


@pytest.fixture
def not_ignored():
    """Tests that were started with nohup inherit that SIGHUP is ignored, which a run respects."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("hook", "step", "signums", "status"), CASES, ids=lambda v: "+".join(s.name for s in v) if isinstance(v, tuple) else v
)
def test_a_signal_loses_nothing(locus, tmp_path, inject, whole_run, hook, step, signums, status, not_ignored):
    ended, _, err = locus("fit", *RUN, inject(hook, step, send(*signums)))
    assert ended == status, err
    assert "continue with: locus fit" in err
    saved = torch.load(checkpoint(tmp_path, "locus"), weights_only=True)
    one_more = signums == (signal.SIGINT,) and hook == "rollout"
    assert saved["global_step"] == step + one_more, "the first Ctrl-C finishes the step, everything else drops it"
    assert saved["locus"]["validation_due"] == (hook in ("validation", "step end"))
    ended, _, err = locus("fit", *RUN, "--ckpt_path=last")
    assert ended == 0, err
    assert_same_end(whole_run, checkpoint(tmp_path, "locus"))


def test_a_stop_before_the_first_step_saves_nothing_and_says_so(locus, tmp_path, inject):
    ended, _, err = locus("fit", *RUN, inject("rollout", 0, send(signal.SIGTERM)))
    assert ended == 143
    assert "stopped before training began" in err
    assert not checkpoint(tmp_path, "locus").exists()
    assert locus("fit", *RUN, "--ckpt_path=auto", "--trainer.max_steps=1")[0] == 0, "auto begins a run where there is none to continue"


def test_the_validation_that_was_due_is_done_after_the_resume(locus, tmp_path, inject, caplog):
    caplog.set_level("INFO", "locus_lightning")
    assert locus("fit", *RUN, inject("validation", 2, send(signal.SIGTERM)))[0] == 143
    caplog.clear()
    assert locus("fit", *RUN, "--ckpt_path=last")[0] == 0
    lines = [record.getMessage() for record in caplog.records]
    assert any("step 2: the validation that was due here is done first" in line for line in lines)


def sleeps(ready):
    ready.send(True)
    time.sleep(30)


def ends_its_process(trainer, module, *_):
    """As a reward with processes of its own does."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=sleeps, args=(there,), daemon=True)
    process.start()
    here.recv()  # Python drops signals that arrive while a process is being forked
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGTERM, "it ignored its signal"


def test_processes_of_a_reward_can_still_be_ended(locus, inject):
    assert locus("fit", *RUN, "--trainer.max_steps=2", inject("rollout", 0, ends_its_process))[0] == 0


@pytest.mark.slow
def test_a_process_that_is_told_to_end_says_so_and_saves(locus_process, tmp_path):
    """The real thing: a process of its own, with a loader's worker, ended by SIGTERM while it trains."""
    process = locus_process("fit", *RUN, "--trainer.max_steps=10000", "--data.num_workers=1", "--trainer.enable_progress_bar=true")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 143, "".join(lines) + rest
    assert rest.count("continue with: locus fit") == 1
    assert "Traceback" not in rest
    assert checkpoint(tmp_path, "locus").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 5.0])
def test_ctrl_c_while_libraries_and_weights_load_is_said(locus_process, seconds):
    process, deadline = locus_process("fit", *RUN, "--trainer.max_steps=10000"), time.monotonic() + 120
    maps = Path(f"/proc/{process.pid}/maps")
    while maps.exists() and "libtorch" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)  # before that Python itself may not have come to the command yet
    time.sleep(seconds)  # somewhere in the imports, or in the loading: nothing has been trained
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode in (130, -signal.SIGINT), said  # a shell shows 130 for both
    assert "stopped" in said
    assert "Traceback" not in said


def test_a_stop_that_an_import_turned_into_another_error_is_still_a_stop(monkeypatch, capsys):
    """Seen in numpy: the exception was lost in an import, which then recursed to its end."""
    from locus_lightning.cli import fit

    class Imports:
        def __init__(self, *arguments, **settings):
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                raise RecursionError("maximum recursion depth exceeded") from None

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            fit.run(["fit"], Imports)
        assert ended.value.code == 130
        assert "stopped before training began" in capsys.readouterr().err
        fit.stop_at_once_on_ctrl_c()
        monkeypatch.setattr(Imports, "__init__", lambda *a, **k: (_ for _ in ()).throw(RecursionError("of its own")))
        with pytest.raises(RecursionError):
            fit.run(["fit"], Imports)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_process_that_is_killed_ends_the_others_with_a_message(strategy, locus_process, tmp_path):
    process = locus_process("fit", *RUN, "--trainer.devices=2", f"--trainer.strategy={strategy}", "--trainer.max_steps=10000",
                            "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=true", "--checkpoints.every_n_steps=1")  # fmt: skip
    lines, child = after_a_step(process)
    os.kill(child, signal.SIGKILL)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 2, "".join(lines) + rest
    assert "another process of this run is gone" in rest
    assert "Traceback" not in rest
    (saved,) = tmp_path.rglob("last.ckpt")
    assert len(torch.load(saved, weights_only=True)["locus"]["ranks"]) == 2
