"""The notebooks run from the first cell to the last, made small; their source holds no outputs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.integration.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: object) -> nbformat.NotebookNode:
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs(notebook: nbformat.NotebookNode) -> tuple[str, int]:
    """All text, and the number of pictures."""
    texts, pictures = [], 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
            pictures += "image/png" in output.get("data", {})
    return "\n".join(texts), pictures


@pytest.mark.slow
def test_the_quickstart_trains_and_shows_pictures(tmp_path, monkeypatch):
    text, pictures = outputs(run(ROOT / "notebooks/quickstart.ipynb", tmp_path, monkeypatch, STEPS=1))
    assert "held-out mean IoU 0.1" in text
    assert pictures == 4, "scenes, answers before, curves, answers after"


@pytest.mark.slow
def test_qlora_on_one_gpu_runs_with_a_toy_in_place_of_the_download(tmp_path, toy_folder, monkeypatch):
    more = {"CHECKPOINT": toy_folder("qwen2_5_vl"), "STEPS": 1, "TOKENS": 4, "GROUPS": 2, "QUESTIONS": 1}
    notebook = run(ROOT / "notebooks/qlora_one_gpu.ipynb", tmp_path, monkeypatch, **more)
    text, pictures = outputs(notebook)
    for words in ("It fits the card", "run folder: runs/notebook/version_0", "questions, greedy", "loaded again"):
        assert words in text, text[-3000:]
    assert pictures == 1
    assert (tmp_path / "my-model/model.safetensors").is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
