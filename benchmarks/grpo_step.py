"""Seconds and memory of a GRPO step: locus, locus with every prompt paid for by every completion, and TRL, in turn.

    python benchmarks/grpo_step.py --workload tiny                    # 2 CPU cores, a few minutes
    python benchmarks/grpo_step.py --workload tiny-llava --engines locus plain
    python benchmarks/grpo_step.py --workload tiny --scaling          # against G and the prompt's length, with a plot
    python benchmarks/grpo_step.py --workload data                    # cue samples a second through the loader
    python benchmarks/grpo_step.py --workload qwen-7b-24gb            # one GPU; also llava-7b-24gb

TRL comes with the extra `benchmark` (pip install "locus-lightning[benchmark]"). Each engine runs in a process of its own, one after
the other. docs/benchmarks.md tells what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

ENGINES = ("locus", "plain", "trl")
PHASES = ("rollout", "reference", "update")
_FILLER = " Look at the picture as a whole, then at the part, and compare shape, colour and what is next to it."


@dataclass(frozen=True)
class Workload:
    """One step: ``prompts`` prompts of two pictures with ``group`` completions of up to ``tokens`` each."""

    checkpoint: str
    image: int
    cue: int
    prompts: int = 2
    group: int = 8
    tokens: int = 64
    filler: int = 0
    rank: int = 16
    gpu: bool = False
    micro: int = 2


WORKLOADS = {
    "tiny": Workload("qwen_tiny", 448, 84, filler=2),
    "tiny-llava": Workload("llava_tiny", 224, 84),
    "qwen-7b-24gb": Workload("qwen_7b", 980, 112, tokens=128, rank=64, gpu=True, micro=1),
    "onevision-7b-24gb": Workload("onevision_7b", 768, 112, tokens=128, rank=64, gpu=True, micro=1),
    "tiny-onevision": Workload("onevision_tiny", 96, 24, tokens=16),
    "llava-7b-24gb": Workload("llava_7b", 336, 112, tokens=128, rank=64, gpu=True, micro=1, filler=8),
}


# ---- the same work for every engine --------------------------------------------------------------------------------------


def sample(workload: Workload, index: int) -> Any:
    """A picture of noise and a cue cut out of it."""
    import numpy as np
    from PIL import Image

    from locus_lightning.types import Cue, CueSample, CueWindow

    side, cut = workload.image, workload.cue
    pixels = np.random.default_rng(index).integers(0, 255, (side // 14, side // 14, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    x, y = (int(v) for v in np.random.default_rng([1, index]).integers(0, side - cut, 2))
    window = CueWindow((x, y, x + cut, y + cut), "small")
    return CueSample(str(index), image, Cue(image.crop(window.box), window), (float(x), float(y), float(x + cut), float(y + cut)))


def words(workload: Workload) -> Any:
    from locus_lightning.tasks.cue_search import CuePrompt

    return replace(CuePrompt(), instruction=CuePrompt().instruction + _FILLER * workload.filler)


def locus_module(workload: Workload, folder: str, share: bool) -> Any:
    """The module that is measured; without ``share`` every completion pays for its prompt."""
    from locus_lightning.backbones.adapters import LoRA
    from locus_lightning.backbones.llava import LlavaBackbone
    from locus_lightning.backbones.llava_onevision import LlavaOnevisionBackbone
    from locus_lightning.backbones.qwen2_5_vl import Qwen2_5_VLBackbone
    from locus_lightning.rollout.base import SamplingParams
    from locus_lightning.rollout.hf import HFRollout
    from locus_lightning.tasks.cue_search import CueSearch
    from locus_lightning.training.grpo import LocusModule

    kinds = {"llava": LlavaBackbone, "onevision": LlavaOnevisionBackbone, "qwen": Qwen2_5_VLBackbone}
    kind: Any = kinds[workload.checkpoint.partition("_")[0]]
    backbone = kind(
        folder, dtype="bfloat16" if workload.gpu else "float32", quantize="nf4" if workload.gpu else None, share_prefix=share,
        lora=LoRA(workload.rank, workload.rank), gradient_checkpointing=workload.gpu,
    )  # fmt: skip
    engine = HFRollout() if share else PlainRollout()
    if not share:  # keep the pixels, which the plain sampler runs through the tower for every completion
        backbone._without_pixels = lambda prompt, features: replace(prompt, features=features)
    sampling = SamplingParams(workload.tokens)
    return LocusModule(
        backbone, CueSearch(words(workload)), rollout=engine, sampling=sampling, group_size=workload.group, micro_batch_size=workload.micro
    )


def run_locus(workload: Workload, folder: str, steps: int, warmup: int, share: bool) -> dict[str, Any]:
    import lightning as L
    import torch

    from locus_lightning.data.datamodule import CueDataModule
    from locus_lightning.data.source import CueDataset, CueSource

    class Work(CueDataset):
        def __len__(self) -> int:
            return workload.prompts * (steps + warmup)

        def __getitem__(self, key: Any) -> Any:
            return sample(workload, key[1])

    class Source(CueSource):
        def dataset(self, split: Any, seed: int) -> CueDataset:
            return Work()

    module = locus_module(workload, folder, share)
    times: defaultdict[str, list[float]] = defaultdict(list)

    class Clock(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch:
                self.started = perf_counter()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if len(module.buffer) == 0:
                if workload.gpu:
                    torch.cuda.synchronize()
                times["step"].append(perf_counter() - self.started)
                collected = {phase: module.seconds[phase] for phase in ("rollout", "score", "reference")}
                for phase in ("rollout", "reference"):
                    times[phase].append(collected[phase])
                times["update"].append(times["step"][-1] - sum(collected.values()))
                if len(times["step"]) == 1:
                    self.prompt = max(len(p.ids_P) for p in (group.prompt for group in module.groups))

    clock = Clock()
    loaded = {}
    module.on_fit_start = lambda: loaded.update(memory=memory(workload))  # type: ignore[method-assign]
    L.Trainer(
        accelerator="gpu" if workload.gpu else "cpu", devices=1, max_steps=steps + warmup, accumulate_grad_batches=workload.prompts // workload.micro,
        precision="bf16-true" if workload.gpu else "32-true",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, callbacks=[clock],
    ).fit(module, datamodule=CueDataModule(Source(), batch_size=workload.prompts))  # fmt: skip
    return result(workload, times, warmup, clock.prompt, loaded["memory"], sum(p.numel() for p in module.backbone.model.parameters()))


def PlainRollout() -> Any:  # noqa: N802
    """SamplingParams as it is done without sharing: every completion runs its own prompt, vision included."""
    from locus_lightning.rollout.base import RolloutEngine
    from locus_lightning.rollout.hf import HFRollout

    class Plain(RolloutEngine):
        def generate(self, backbone: Any, prompts: Any, n: int, sampling: Any) -> Any:
            alone = [replace(p, features=None) for p in prompts for _ in range(n)]
            made = HFRollout(prompts_at_once=len(alone)).generate(backbone, alone, 1, sampling)
            return [[group[0] for group in made[i : i + n]] for i in range(0, len(made), n)]

    return Plain()


def run_trl(workload: Workload, folder: str, steps: int, warmup: int) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from locus_lightning.boxes import iou
    from locus_lightning.tasks.parsing import boxes_in

    made = [sample(workload, i) for i in range(workload.prompts * (steps + warmup))]
    prompt = words(workload)
    text = prompt.before_image + prompt.before_cue + prompt.instruction.format(unit="pixels") + prompt.structure
    rows = [{"prompt": [{"role": "user", "content": text}], "images": [s.image, s.cue.image], "box": list(s.box)} for s in made]
    times: defaultdict[str, list[float]] = defaultdict(list)

    def reward(completions: Any, box: Any, **_: Any) -> list[float]:
        boxes = [boxes_in(c[0]["content"] if isinstance(c, list) else c) for c in completions]
        return [iou(found[0], tuple(right)) if found else 0.0 for found, right in zip(boxes, box, strict=True)]  # type: ignore[arg-type]

    def timed(owner: Any, name: str, phase: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            started = perf_counter()
            out = original(*args, **kwargs)
            if workload.gpu:
                torch.cuda.synchronize()
            times[phase].append(perf_counter() - started)
            return out

        setattr(owner, name, call)

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if workload.gpu:
                torch.cuda.synchronize()
            times["step"].append(perf_counter() - self.started)

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=workload.group * workload.micro,
        gradient_accumulation_steps=workload.prompts // workload.micro, num_generations=workload.group,
        max_completion_length=workload.tokens, beta=0.01, temperature=1.0, learning_rate=1e-6, max_steps=steps + warmup, report_to=[],
        save_strategy="no", logging_steps=10_000, disable_tqdm=True, use_cpu=not workload.gpu, bf16=workload.gpu,
        gradient_checkpointing=workload.gpu, remove_unused_columns=False,
    )  # fmt: skip
    options: dict[str, Any] = {}
    if workload.gpu:
        from transformers import BitsAndBytesConfig

        options = {"quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["visual", "vision_tower", "multi_modal_projector", "lm_head", "model.visual"]), "device_map": {"": 0}}  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16 if workload.gpu else torch.float32, **options)
    linears = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    trainer = GRPOTrainer(
        model, reward, args=config, train_dataset=Dataset.from_list(rows), processing_class=AutoProcessor.from_pretrained(folder),
        peft_config=LoraConfig(r=workload.rank, lora_alpha=workload.rank, target_modules=linears), callbacks=[Clock()],
    )  # fmt: skip
    lengths: list[int] = []
    tokenize = trainer._tokenize_prompts

    def measured(prompts: Any) -> Any:
        out = tokenize(prompts)
        lengths.append(max(len(ids) for ids in out[0]))
        return out

    trainer._tokenize_prompts = measured
    timed(trainer, "_generate_single_turn", "rollout")
    timed(trainer, "_generate_and_score_completions", "collected")
    before = memory(workload)
    trainer.train()
    times["reference"] = [whole - rollout for whole, rollout in zip(times["collected"], times["rollout"], strict=True)]
    times["update"] = [step - whole for step, whole in zip(times["step"], times["collected"], strict=True)]
    return result(workload, times, warmup, max(lengths), before, sum(p.numel() for p in trainer.model.parameters()))


def memory(workload: Workload) -> float:
    """Peak so far, MiB: of the process on a CPU, of the allocator on a GPU."""
    if workload.gpu:
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def result(workload: Workload, times: Any, warmup: int, prompt: int, loaded: float, parameters: int) -> dict[str, Any]:
    spread = {phase: [round(v, 3) for v in times[phase][warmup:]] for phase in ("step", *PHASES)}
    return {"times": spread, "prompt_tokens": prompt, "peak_mb": round(memory(workload)), "loaded_mb": round(loaded),
            "parameters_m": round(parameters / 1e6, 2)}  # fmt: skip


# ---- one process an engine -------------------------------------------------------------------------------------------------


def child(asked: argparse.Namespace) -> None:
    """Run one engine and print its figures as the last line."""
    import logging
    import os
    import warnings

    import torch

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    workload = Workload(**json.loads(asked.child))
    if workload.gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, asked.cap * 2**30 / total))
    else:
        torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    run: dict[str, Callable[[], dict[str, Any]]] = {
        "locus": lambda: run_locus(workload, asked.folder, asked.steps, asked.warmup, share=True),
        "plain": lambda: run_locus(workload, asked.folder, asked.steps, asked.warmup, share=False),
        "trl": lambda: run_trl(workload, asked.folder, asked.steps, asked.warmup),
    }
    print("\n" + json.dumps(run[asked.engines[0]]()))


def measure(workload: Workload, engine: str, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", json.dumps(asdict(workload)), "--engines", engine, "--folder", str(folder)]
    command += ["--steps", str(asked.steps), "--warmup", str(asked.warmup), "--threads", str(asked.threads), "--cap", str(asked.cap)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def in_turn(workload: Workload, engines: list[str], folder: Path, asked: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every engine ``rounds`` times, one after the other and round by round, so that a slow minute of the machine hits all of them."""
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(asked.rounds):
        for engine in engines:
            found = measure(workload, engine, folder, asked)
            print(engine, json.dumps(found), flush=True)
            kept = rows.setdefault(engine, found)
            if kept is not found and "times" in found and "times" in kept:
                kept["peak_mb"] = max(kept["peak_mb"], found["peak_mb"])
                for phase, values in found["times"].items():
                    kept["times"][phase] += values
    for row in rows.values():
        if "times" in row:
            row["seconds"] = {phase: round(median(values), 3) for phase, values in row["times"].items()}
    return rows


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.processor() or platform.machine()}
    for name in ("torch", "transformers", "lightning", "peft", "trl", "locus-lightning"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(name: str, rows: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{name}: medians, seconds a step; peak memory")
    for column in ("engine", "step", *PHASES, "peak MB", "times slower than locus", "memory / locus"):
        shown.add_column(column, justify="left" if column == "engine" else "right")
    base = rows.get("locus", {})
    for engine, figures in rows.items():
        if "failed" in figures:
            shown.add_row(engine, figures["failed"])
            continue
        ratio = [figures["seconds"]["step"] / base["seconds"]["step"], figures["peak_mb"] / base["peak_mb"]] if "seconds" in base else []
        cells = [f"{figures['seconds'][p]:.2f}" for p in ("step", *PHASES)]
        shown.add_row(engine, *cells, f"{figures['peak_mb']:,}", *(f"{r:.2f}" for r in ratio))
    Console().print(shown)


def scaling(workload: Workload, folder: Path, asked: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Step time against G, and against the prompt's length, of the two layouts; drawn to ``out``."""
    found: dict[str, Any] = {"group": {"locus": [], "plain": []}, "prompt": {"locus": [], "plain": []}}
    for kind, values in (("group", (2, 4, 8, 16)), ("image", (224, 336, 448, 560))):
        for value in values:
            for engine, row in in_turn(replace(workload, **{kind: value}), ["locus", "plain"], folder, asked).items():
                if "seconds" in row:
                    axis_value = value if kind == "group" else row["prompt_tokens"]
                    found["group" if kind == "group" else "prompt"][engine].append([axis_value, row])
    draw_scaling(found, out)
    return found


def draw_scaling(found: dict[str, Any], out: Path) -> None:
    """Three panels: step and update against G, step against the prompt's length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    panels = (
        ("group", "step", "completions a prompt, G"),
        ("group", "update", "completions a prompt, G"),
        ("prompt", "step", "prompt tokens"),
    )
    for axis, (kind, phase, label) in zip(axes, panels, strict=True):
        for engine, colour in (("locus", "#3566c8"), ("plain", "#b3261e")):
            points = [(x, row["seconds"][phase]) for x, row in found[kind][engine]]
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=engine)
        axis.set(xlabel=label, ylabel=f"seconds: {phase}", ylim=(0, None), xlim=(0, None), xticks=[x for x, _ in found[kind]["locus"]])
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.suptitle("Prompt paid for once a group (locus) and once a completion (plain)")
    figure.savefig(out, dpi=120)


def main() -> None:
    import os

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[*WORKLOADS, "data"], default="tiny")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--steps", type=int, default=5, help="measured in every round")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=2, help="turns of every engine")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    parser.add_argument("--cap", type=float, default=24.0, help="GPU memory allowed, GiB")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--scaling", action="store_true", help="also against G and the prompt's length; a plot beside the JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked)
        return
    if asked.workload == "data":
        import data_rate

        report = {"rates": data_rate.rates(), "needed": data_rate.needed(Path(__file__).parent / "results"), "versions": versions()}
        print("prompts a second that the measured steps use:", report["needed"])
        if asked.json:
            asked.json.write_text(json.dumps(report, indent=1) + "\n")
        return
    import checkpoints

    workload = WORKLOADS[asked.workload]
    with tempfile.TemporaryDirectory() as name:
        folder = getattr(checkpoints, workload.checkpoint)(Path(name) / "checkpoint")
        rows = in_turn(workload, asked.engines, folder, asked)
        table(asked.workload, rows)
        report = {"workload": {asked.workload: asdict(workload)}, "engines": rows, "versions": versions(), "threads": asked.threads}
        if asked.scaling:
            plot = (asked.json or Path("scaling.json")).with_suffix(".png")
            report["scaling"] = scaling(workload, folder, asked, plot)
            print(plot)
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
