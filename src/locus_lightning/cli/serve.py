"""``locus serve``: the line that starts the vLLM server of a configuration, and the folder that it serves."""

from __future__ import annotations

import argparse
import ipaddress
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from locus_lightning.boxes import BoxFrame
from locus_lightning.cli.fit import LocusCLI, run
from locus_lightning.data.source import few_samples
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.evaluation.runner import folder_name
from locus_lightning.rollout.vllm_rollout import VLLMRollout
from locus_lightning.rollout.vllm_server import KEY_VARIABLE

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM makes room for."""
_ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


def serve_command(arguments: Sequence[str]) -> int:
    """Print the line, or become the server."""
    parser = argparse.ArgumentParser(
        "locus serve",
        description="Lay out the checkpoint of a configuration whose model.rollout is VLLMRollout, and print the line that starts vLLM on it: "
        "adapters, images a prompt, the processor's budgets, host and port of rollout.url. Every option of `locus fit` is taken too; what "
        "stands behind -- is handed to vLLM.",
        epilog="example: locus serve --config configs/vllm.yaml --start -- --gpu-memory-utilization 0.9",
    )
    parser.add_argument("--config", required=True, help="as for locus fit")
    parser.add_argument("--start", action="store_true", help="start the server instead of printing the line")
    parser.add_argument("--vllm", default="vllm serve", metavar="COMMAND", help="how vLLM is started, such as PATH/bin/vllm serve")
    parser.add_argument("--images", type=int, metavar="N", help="images a prompt; default: as many as the training samples have")
    parser.add_argument("--folder", type=Path, default=Path("runs/served"), help="where the checkpoint is laid out (default runs/served)")
    own, further = _split(arguments)
    options, rest = parser.parse_known_args(own)
    line: list[str] = []

    class ServeCLI(LocusCLI):
        """The configuration as ``fit`` reads it, and no fit."""

        def _run_subcommand(self, subcommand: str) -> None:
            module, data = self.model, self.datamodule
            if not isinstance(module.rollout, VLLMRollout):
                raise ConfigError(
                    f"model.rollout is {type(module.rollout).__name__}, which needs no server; set model.rollout: {{class_path: VLLMRollout}}."
                )
            module.backbone.check()
            module.rollout.check(module.backbone)
            images = _images(module, data) if options.images is None else options.images
            if self.trainer.precision == "bf16-true" and module.backbone.dtype == torch.float32:
                module.backbone.dtype = torch.bfloat16  # as training does
            folder = _emptied(options.folder / folder_name(module.backbone.checkpoint))
            line.extend(shlex.split(options.vllm) + serve_arguments(module, folder, images) + list(further))
            module.backbone.save_served(folder)

    run(["fit", "--config", options.config, *rest], ServeCLI, save_config=False)
    if not options.start:
        print(" ".join([*(f"{name}={value}" for name, value in _ENVIRONMENT.items()), shlex.join(line)]))
        return 0
    if shutil.which(line[0]) is None:
        raise ConfigError(
            f"--vllm names {line[0]!r}, which is no command here; install vLLM in an environment of its own and give its path."
        )
    os.execvpe(line[0], line, {**os.environ, **_ENVIRONMENT})


def serve_arguments(module: Any, folder: Path, images: int) -> list[str]:
    """Arguments of ``vllm serve`` for a training module.

    Args:
        module: with a :class:`VLLMRollout`.
        folder: in which the checkpoint is laid out.
        images: a prompt has at most so many.

    Raises:
        ConfigError: an address that others can reach, without a key.
    """
    backbone, address = module.backbone, urlsplit(module.rollout.url)
    if not _is_loopback(address.hostname or "") and not os.environ.get(KEY_VARIABLE):
        raise ConfigError(
            f"rollout.url is {module.rollout.url}, which other machines can reach; set {KEY_VARIABLE} in the environment of the server and of "
            "the training, or use 127.0.0.1."
        )
    asked = max([backbone.adapter_rank, *getattr(getattr(backbone, "lora", None), "rank_pattern", {}).values()])
    rank = next((rank for rank in _RANKS if rank >= asked), None)
    if rank is None:
        raise ConfigError(f"backbone.lora.rank is {asked}; vLLM serves adapters of rank {_RANKS[-1]} at most.")
    arguments = {
        "host": address.hostname,
        "port": address.port or (443 if address.scheme == "https" else 80),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "max-model-len": "auto",
        "max-lora-rank": rank,
        "max-loras": 2,  # the one in use, and the next
        "limit-mm-per-prompt": f'{{"image": {images}}}',
        "logprobs-mode": "processed_logprobs",  # behind the temperature
        "generation-config": "vllm",  # no settings of the checkpoint's author
    }
    flags = ["--enable-lora", "--enable-scale-out", *(["--trust-remote-code"] if getattr(backbone, "trust_remote_code", False) else [])]
    return [str(folder), *flags, *(text for name, value in arguments.items() for text in (f"--{name}", str(value)))]


def _emptied(folder: Path) -> Path:
    """A folder without what an earlier call laid out there.

    Raises:
        ConfigError: it holds something else.
    """
    mark = folder / ".served-by-locus"
    if folder.is_dir() and any(folder.iterdir()):
        if not mark.is_file():
            raise ConfigError(f"{folder} holds files that `locus serve` did not put there; give another --folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    mark.touch()
    return folder


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before and behind ``--``."""
    place = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:place]), list(arguments[place + 1 :])


def _images(module: Any, data: Any) -> int:
    """Images of the prompts of a few training samples, at most."""
    try:
        data.setup("fit")
        samples = few_samples(data.task_dataset("train", module.task), 8)
    except DataError as cause:
        raise ConfigError(f"{cause} To lay out the server without the data, say how many images a prompt has: --images 2.") from cause
    contents = [module.task_of(sample).messages(sample, BoxFrame.thousandths(sample.image.size)) for sample in samples]
    return max(sum(not isinstance(part, str) for part in content) for content in contents)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
