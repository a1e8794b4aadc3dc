"""Running the real command line, in this process or as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from locus_lightning.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def locus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run ``locus`` in an empty folder: returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        status = 0
        monkeypatch.setattr(sys, "argv", ["locus", *map(str, arguments)])
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def locus_process(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start ``locus`` as a process of its own in an empty folder."""

    def start(*arguments: str, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "locus_lightning", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, **more)

    return start


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small photo folder in COCO layout, of noise."""
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)).save(root / "images" / f"{i}.jpg")
        images.append({"id": i, "file_name": f"{i}.jpg", "width": 320, "height": 240})
        for k, box in enumerate([(10, 10, 20, 20), (200, 120, 22, 20), (60, 100, 18, 24), (100, 30, 60, 40)]):
            annotations.append({"id": 10 * i + k, "image_id": i, "bbox": list(box), "category_id": 1, "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "instances.json").write_text(json.dumps(content))
    return root


def small(**overrides: object) -> list[str]:
    """Options that make any shipped training config take seconds on a CPU."""
    options = {
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 1,
        "trainer.enable_progress_bar": "false",
        "data.val_batch_size": 2,
        "data.num_workers": 0,
        **overrides,
    }
    return [f"--{key}={value}" for key, value in options.items()]
