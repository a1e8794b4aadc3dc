"""Benchmarks for a GPU in their tiny form: the first run on a card has to work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
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
    assert found["check"]["completions equal to copies"] == "8 of 8"
    assert all(found["check"][f"sampler gap, {weights}, largest"] < 1e-4 for weights in ("4 bits", "copies", "merged"))
    assert found["check"]["gradients packed and plain, relative difference"] < 1e-4
    assert found["check"]["8-bit AdamW resumed, largest difference of a weight"] == 0
    assert found["update"]["forward and backward, s"] > 0
    assert found["decode"]["a step, 4 bits"]["operations a token"] > found["decode"]["a step, copies"]["operations a token"] > 50
    assert found["kernels"]["plain"]["operations a token"] > 50
    assert found["kernels"]["fused"] == "needs a GPU" or found["kernels"]["largest"] < 0.1
    assert "| decode: " in done.stdout


@pytest.mark.slow
def test_operations_of_a_decoding_step_are_counted_without_a_gpu(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "kernel_count.py"), "--tiny", "--json", "counts.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads((tmp_path / "counts.json").read_text())
    a_layer = {decoding: row["a layer"] for decoding, row in counts.items()}
    assert list(a_layer.values()) == sorted(a_layer.values(), reverse=True)
    assert a_layer["as in training, plain norms"] >= 1.5 * a_layer["adapters fused, copies of 4-bit weights"]
    products = {decoding: row["a layer: products with weights"] for decoding, row in counts.items()}
    assert products == {
        "as in training, plain norms": 7 * 3,
        "adapters fused, plain norms": 7 + 4 + 7,
        "adapters fused": 7 + 4 + 7,
        "adapters fused, copies of 4-bit weights": 4 * 3,
        "adapters merged": 4,
    }
    assert {row["a layer: norms"] for row in counts.values()} == {6, 2}
    for row in counts.values():
        assert row["a layer"] == sum(count for name, count in row.items() if name.startswith("a layer: "))
        assert row["a token"] == row["outside of layers"] + 2 * row["a layer"]
