"""``locus export``: a run's checkpoint as an ordinary Hugging Face folder."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from locus_lightning import __version__
from locus_lightning.backbones import checkpoint as checkpoint_files
from locus_lightning.backbones import loading
from locus_lightning.backbones.base import Backbone
from locus_lightning.backbones.open import Run, take
from locus_lightning.cli.hub import check_login, check_name, push_folder
from locus_lightning.data.synthetic.drawing import Look, paint
from locus_lightning.errors import CheckpointError, ConfigError
from locus_lightning.study.run_page import read_run
from locus_lightning.tasks.question_answering import QuestionAnswering
from locus_lightning.types import Question

log = logging.getLogger(__name__)

PASSED = "export.json"
"""The file of a folder that says what was exported; it is written once the export has passed its comparison."""

_AGREE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Largest difference, in nats, of the next token's log-probabilities above -10 between the live and the exported model."""


def export_command(arguments: Sequence[str]) -> int:
    """Export, and push where that is asked for."""
    parser = argparse.ArgumentParser(
        "locus export",
        description="Write a run's model as a Hugging Face folder that from_pretrained loads, with processor and model card; adapters are "
        "merged into 16-bit weights. The exported model is loaded again and compared with the live one. With --push it then goes to the Hub; a "
        "push that failed is repeated with the same command.",
        epilog="example: locus export runs/llava/version_0 my-model --push ada/my-model --private",
    )
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("folder", type=Path, help="a new or empty folder")
    parser.add_argument("--ckpt", type=Path, help="a checkpoint of it; default: checkpoints/last.ckpt")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"], help="of the weights (default bfloat16)")
    parser.add_argument("--adapter-only", action="store_true", help="write the adapter alone, to be put on the base model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint; read it first")
    parser.add_argument("--push", metavar="OWNER/NAME", help="push the folder to the Hub once it has passed its comparison")
    parser.add_argument("--private", action="store_true", help="with --push: make a new repository private")
    options = parser.parse_args(arguments)
    if options.push:
        check_name(options.push)
        check_login()
    elif options.private:
        raise ConfigError("--private belongs to --push OWNER/NAME.")
    if not (options.push and _exported(options)):
        _export(options)
        (options.folder / PASSED).write_text(json.dumps(_what(options), indent=1) + "\n")
    if options.push:
        print(f"pushed: {push_folder(options.folder, options.push, 'model', options.private)}")
    return 0


def _what(options: argparse.Namespace) -> dict[str, Any]:
    """What an export is made of, so that a folder can be told to be it."""
    checkpoint = options.ckpt or options.run / "checkpoints" / "last.ckpt"
    written = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    return {"run": options.run.name, "checkpoint": checkpoint.name, "written": written, "dtype": options.dtype,
            "adapter_only": options.adapter_only}  # fmt: skip


def _exported(options: argparse.Namespace) -> bool:
    """Whether the folder holds this very export, which has passed its comparison."""
    path = options.folder / PASSED
    return path.is_file() and json.loads(path.read_text()) == _what(options)


def _export(options: argparse.Namespace) -> None:
    """Merge, save, load again, compare."""
    if options.folder.is_dir() and any(options.folder.iterdir()):
        raise ConfigError(f"the folder {options.folder} is not empty; name a new one.")
    run = Run.read(options.run, options.ckpt)
    backbone = run.backbone(options.dtype, options.trust_remote_code)
    if options.adapter_only and not backbone.adapter_rank:
        raise ConfigError("--adapter-only: this run has no adapter; it trained all weights.")
    backbone.check()
    if not options.adapter_only and checkpoint_files.quantisation_of(backbone.checkpoint, options.trust_remote_code):
        raise ConfigError(f"{backbone.checkpoint} is quantised by its own, so adapters cannot be merged into it; use --adapter-only.")
    backbone.load()
    changed = take(backbone, run.checkpoint)
    print(f"{changed:,} weights differ from {backbone.checkpoint}")
    if options.adapter_only:
        backbone.save_pretrained(options.folder)
        write_card(run, backbone, options.folder, options.dtype, "adapter")
        check_adapter(backbone, options.folder)
        print(f"adapter and processor: {options.folder}")
        return
    question = picture()
    content = QuestionAnswering().messages(question, backbone.frame(question.image.size))
    (prompt,) = backbone.encode([content])
    live = backbone.next_token_logps(prompt)
    backbone.merge_adapters()
    backbone.save_pretrained(options.folder)
    write_card(run, backbone, options.folder, options.dtype, "merged")
    text = backbone.prompt_text(content)
    image, worst = backbone.prepare_image(question.image), _AGREE[backbone.dtype]
    del backbone
    gap, answer = reload(options.folder, live, text, image)
    if gap > worst:
        raise CheckpointError(
            f"the exported model's log-probabilities differ from the live model's by up to {gap:.2g} nats, more than rounding ({worst:g}); "
            f"{options.folder} is kept for a look, do not use it."
        )
    print(f"loaded again: next-token log-probabilities differ by at most {gap:.2g} nats; it answers a plain question with {answer!r}")
    print(f"model, processor and card: {options.folder}")


def check_adapter(backbone: Backbone, folder: Path) -> None:
    """Hold a written adapter against the live one, bit for bit.

    Raises:
        CheckpointError: a weight differs.
    """
    from safetensors.torch import load_file

    written = load_file(folder / "adapter_model.safetensors")
    live = {name.replace(".default", ""): value for name, value in backbone.state_dict().items() if "lora_" in name}
    wrong = [
        name for name, value in live.items() if not torch.equal(written.get(name.removeprefix("model."), value.new_zeros(0)), value.cpu())
    ]
    if wrong or len(written) != len(live):
        raise CheckpointError(f"the adapter in {folder} is not the live one ({len(wrong)} of {len(live)} weights differ); do not use it.")


def picture() -> Question:
    """A red circle on grey, and a plain question about it; so small that ``max_tiles`` changes nothing about how it is seen."""
    image = Image.new("RGB", (40, 40), (120, 120, 120))
    paint(image, (10.0, 12.0, 30.0, 32.0), Look("circle", "red", "plain"))
    return Question("picture", image, "What is in this picture?", "a red circle")


@torch.no_grad()
def reload(folder: Path, live: Tensor, text: str, image: Image.Image) -> tuple[float, str]:
    """Load an exported folder as anybody would: largest difference of likely tokens' log-probabilities to ``live``, and an answer."""
    from transformers import AutoModelForImageTextToText

    processor = loading.load_processor(str(folder), False)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    inputs = processor(text=[text], images=[image], return_tensors="pt").to(model.device, model.dtype)
    logps = model(**inputs, use_cache=False).logits[0, -1].float().log_softmax(-1).cpu()
    likely = live > -10
    generated = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return float((logps - live)[likely].abs().max()), processor.decode(generated, skip_special_tokens=True)


def write_card(run: Run, backbone: Backbone, folder: Path, dtype: str, kind: str) -> None:
    """A model card: base, data, configuration, figures."""
    data = run.config.get("data", {}).get("source", {})
    figures = [
        f"| {name} | {run.summary.get('before', {}).get(name, float('nan')):.3f} | {value:.3f} |"
        for name, value in run.summary.get("after", {}).items()
        if name.startswith(("iou", "acc", "parse_rate", "eval"))
    ]
    convention = backbone.convention
    metadata: dict[str, Any] = {"base_model": backbone.checkpoint, "library_name": "peft" if kind == "adapter" else "transformers"}
    metadata |= {"pipeline_tag": "image-text-to-text", "tags": ["locus-lightning", "grpo", "visual-cue-search"]}
    lines = [
        "---", yaml.safe_dump(metadata, sort_keys=False).strip(), "---", "",
        f"# {backbone.checkpoint} after visual cue search", "",
        f"Trained by [LOCUS](https://arxiv.org/abs/2606.16586) with locus-lightning {__version__}: crops of an image had to be found in it, "
        "rewarded by IoU. Use it as the base model is used, with an image and a question; crops were needed in training only.", "",
        f"- base model: `{backbone.checkpoint}` ({type(backbone).__name__}); its licence applies",
        f"- weights: {'adapter alone' if kind == 'adapter' else f'all, {dtype}'}, from `{run.checkpoint.name}`",
        f"- boxes: {convention.frame if convention else 'see the backbone plugin'}",
        f"- files: tokenizer, processor, template and configuration are the base model's own, so the versions of transformers that load it "
        f"load this; weights written with transformers {version('transformers')}",
        f"- optimiser steps: {run.summary.get('steps', 'not recorded')}, seed {run.summary.get('seed', 'not recorded')}", "",
        "## Held-out figures", "",
        *(["| figure | before | after |", "|---|---|---|", *figures] if figures else ["The run left no summary."]), "",
        "## Data", "", "```yaml", yaml.safe_dump(data, sort_keys=False).strip(), "```", "",
        "## Configuration", "", "```yaml", yaml.safe_dump(run.config.get("model", {}), sort_keys=False).strip(), "```", "",
    ]  # fmt: skip
    lines[-1:-1] = _pictures(run, folder)
    (folder / "README.md").write_text("\n".join(lines))


def _pictures(run: Run, folder: Path) -> list[str]:
    """The run's first and last picture of answers, put beside the card, and the lines that show them."""
    pictures = read_run(run.folder).pictures
    lines = ["", "## Answers during training", ""] if pictures else []
    for step, png in pictures:
        (folder / f"answers-step-{step}.png").write_bytes(png)
        lines += [
            f"Step {step}; the true box is white, answers go from red (reward 0) to green (1):",
            "",
            f"![Answers of step {step}](answers-step-{step}.png)",
            "",
        ]
    return lines
