"""The GPU benchmark in its tiny form: the first run on a card has to work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_gpu_benchmark_runs_in_its_tiny_form(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu.py"),
        "--tiny",
        "--models",
        "onevision",
        "--parts",
        "check",
        "update",
        "decode",
        "kernels",
    ]
    done = subprocess.run([*command, "--json", "gpu.json"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["onevision"]
    assert not any("failed" in part or "left out" in part for part in found.values()), found
    assert found["check"]["completions equal to repeated prompts"] == "8 of 8"
    assert found["check"]["sampler gap, largest"] < 1e-4
    assert found["check"]["gradients packed and plain, relative difference"] < 1e-4
    assert found["check"]["8-bit AdamW resumed, largest difference of a weight"] == 0
    assert found["update"]["forward and backward, s"] > 0
    assert found["decode"]["a step"]["operations a token"] > 50
    assert found["kernels"]["plain"]["operations a token"] > 50
    assert found["kernels"]["fused"] == "needs a GPU" or found["kernels"]["largest"] < 0.1
    assert "| decode: " in done.stdout
