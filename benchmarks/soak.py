"""The long forms of tests/faults: random kills, memory over many steps, hostile completions, mutated configurations.

    uv run python benchmarks/soak.py kills --tries 10          kill -9 at random moments, continue, compare with the run that nothing disturbs
    uv run python benchmarks/soak.py memory --minutes 10       resident memory, threads and open files of a run, by step
    uv run python benchmarks/soak.py completions --number 100000   what a model could write, through parsing and rewards: nothing may raise
    uv run python benchmarks/soak.py configs --number 300      settings changed at random: a short sentence or a run, never a traceback

Each prints one line of figures and writes it to --out as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCENES = ROOT / "tests" / "configs" / "scenes_llava.yaml"
RUN = [
    "--config", str(SCENES), "--model.mask_truncated_completions=false", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e-3",
    "--trainer.accumulate_grad_batches=2", "--checkpoints.every_n_steps=5", "--data.source.init_args.train_size=400",
    "--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=0",
]  # fmt: skip
"""A toy run whose weights move at every step."""


def locus(arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """The command line as a process of its own."""
    command = [sys.executable, "-m", "locus_lightning", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def last(folder: Path) -> Path:
    """The last checkpoint of the only run in a folder."""
    return folder / "runs" / "locus" / "version_0" / "checkpoints" / "last.ckpt"


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Kill a run at random moments, as often as it takes to finish; count what was lost, and compare the end."""
    import torch

    steps, chance = options.steps, random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        whole, broken = Path(name) / "whole", Path(name) / "broken"
        whole.mkdir()
        broken.mkdir()
        locus(["fit", *RUN, f"--trainer.max_steps={steps}"], whole).wait()
        lost, unreadable = [], 0
        for _ in range(options.tries):
            process = locus(["fit", *RUN, f"--trainer.max_steps={steps}", "--ckpt_path=auto"], broken)
            time.sleep(chance.uniform(*options.between))
            process.send_signal(signal.SIGKILL)
            process.wait()
            try:
                lost.append(torch.load(last(broken), weights_only=True)["global_step"] if last(broken).exists() else 0)
            except Exception:
                unreadable += 1
        end = locus(["fit", *RUN, f"--trainer.max_steps={steps}", "--ckpt_path=auto"], broken).wait()
        a, b = (torch.load(last(folder), weights_only=True)["state_dict"] for folder in (whole, broken))
        same = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    return {
        "kills": options.tries,
        "unreadable_checkpoints": unreadable,
        "steps_at_kill": lost,
        "exit_of_the_last": end,
        "same_weights": same,
    }


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory, threads and open files of a run, from its second minute to its last."""
    rows: list[tuple[float, int, int]] = []
    with tempfile.TemporaryDirectory() as name:
        process = locus(["fit", *RUN, "--trainer.max_steps=10000000", "--trainer.max_epochs=-1", "--data.num_workers=1"], Path(name))
        deadline = time.monotonic() + 60 * options.minutes
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(5)
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            files = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
            rows.append((int(found["VmRSS"].split()[0]) / 1024, int(found["Threads"]), files))
        process.send_signal(signal.SIGTERM)
        process.wait()
        import torch

        steps = torch.load(last(Path(name)), weights_only=True)["global_step"] if last(Path(name)).exists() else 0
    warm = rows[len(rows) // 5 :]
    third = max(1, len(warm) // 3)
    early, late = (statistics.median(row[0] for row in part) for part in (warm[:third], warm[-third:]))
    return {"minutes": options.minutes, "steps": steps, "mib_early": round(early, 1), "mib_late": round(late, 1),
            "threads": sorted({row[1] for row in warm}), "open_files": [min(r[2] for r in warm), max(r[2] for r in warm)],
            "exit": process.returncode}  # fmt: skip


def completions(options: argparse.Namespace) -> dict[str, Any]:
    """Texts that a model could write, through parsing, scoring and every reward."""
    from locus_lightning.boxes import BoxFrame
    from locus_lightning.rewards.answer import AnswerReward
    from locus_lightning.rewards.base import checked_scores
    from locus_lightning.rewards.format import FormatReward
    from locus_lightning.rewards.iou import IoUReward
    from locus_lightning.tasks.cue_search import CueSearch
    from locus_lightning.testing import example_sample

    chance, task, sample = random.Random(options.seed), CueSearch(), example_sample()
    pieces = ["<think>", "</think>", "<answer>", "</answer>", "[", "]", "(", ")", ",", ", ", " ", "\n", ".", "-", "e", "inf", "nan", "1e308", "10",
              "42.5", "999", "0", "9" * 400, "\x00", "\u2028", "\ud83d", "box", "{", "}", '"bbox_2d": ', "```json", "|", "½", "٣", "−"]  # fmt: skip
    numbers = ["0", "10", "42.5", "999", "-3", "1e3", "1e308", "9" * 400, "nan", "0.25", " 7 "]
    frames = [BoxFrame.thousandths(sample.image.size), BoxFrame.padded_fractions(sample.image.size, 3)]
    rewards, read = [IoUReward(), FormatReward(), AnswerReward()], 0
    for _ in range(options.number):
        parts = [chance.choice(pieces) for _ in range(chance.randint(0, 24))]
        if chance.random() < 0.5:
            parts.insert(chance.randint(0, len(parts)), f"<answer>[{', '.join(chance.choice(numbers) for _ in range(4))}]</answer>")
        text = "".join(parts)
        completion = task.complete(text, sample, chance.choice(frames))
        read += completion.answer is not None
        for reward in rewards:
            checked_scores(reward, [completion], sample)
    return {"completions": options.number, "with_an_answer": read, "raised": 0}


VALUES = [
    "null",
    "-1",
    "0",
    "1",
    "1e30",
    ".nan",
    ".inf",
    "''",
    "[]",
    "{}",
    "true",
    "nope",
    "1000000000000000000",
    "[1, 2]",
    "{a: 1}",
    "-0.5",
    "2.5",
]


def configs(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of a run changed at random, one at a time, by values of other types and sizes; weights are never loaded."""
    import yaml

    from locus_lightning.backbones.hf import HFBackbone
    from locus_lightning.cli.main import main

    class Loaded(BaseException):
        """The settings were taken: loading begins."""

    def loads(self: Any) -> None:
        raise Loaded

    HFBackbone.load = loads  # type: ignore[method-assign]
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.suppress(SystemExit):
        main(["fit", *RUN, "--print_config"])
    keys = sorted(_leaves(yaml.safe_load(screen.getvalue())))
    chance, said, worst, longest = random.Random(options.seed), Counter[str](), [], 0
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        for _ in range(options.number):
            setting = f"--{chance.choice(keys)}={chance.choice(VALUES)}"
            errors = io.StringIO()
            try:
                with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                    main(["fit", *RUN, "--trainer.max_steps=1", setting])
                said["ran"] += 1
            except Loaded:
                said["taken"] += 1
            except SystemExit as stop:
                line = errors.getvalue().strip().splitlines()[-1] if errors.getvalue().strip() else ""
                said["sentence" if stop.code == 2 and line.startswith("locus:") else "other exit"] += 1
                longest = max(longest, len(line))
            except BaseException as error:
                said["traceback"] += 1
                worst.append(f"{setting}: {type(error).__name__}: {str(error)[:100]}")
    return {"configs": options.number, **said, "longest_sentence": longest, "tracebacks": worst}


def _leaves(tree: Any, prefix: str = "") -> list[str]:
    if isinstance(tree, dict) and tree:
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))]
    return [prefix]


def main_command() -> None:
    """Run one form and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=["kills", "memory", "completions", "configs"])
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--between", type=float, nargs=2, default=(12.0, 40.0), help="seconds between which a kill falls")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    forms = {"kills": kills, "memory": memory, "completions": completions, "configs": configs}
    figures = {"form": options.form, "seed": options.seed, **forms[options.form](options)}
    print(json.dumps(figures))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main_command()
