"""Checks and measures on a GPU what the tests check on a CPU and nothing else measures. One command, at most eight minutes.

    python benchmarks/gpu.py --json gpu.json                    # all parts, as far as the minutes go
    python benchmarks/gpu.py --parts check decode               # some of them
    python benchmarks/gpu.py --tiny                             # toy sizes, on a CPU too: the tests run this

It makes checkpoints of the real shapes with random weights, so it needs no network. Run it from a source checkout where ``src`` and the
packages of pyproject.toml can be imported; the part ``step`` compares with TRL where that can be imported.

check      captured = uncaptured = copies of 4-bit weights = repeated prompts: tokens, log-probabilities; packed = plain: gradients; sampler gap
           from 4-bit weights, from copies and with merged adapters; resume of 8-bit AdamW
decode     milliseconds, kernels and kernel time a token, by rows, from 4-bit weights, from copies and with merged adapters
update     forward and backward, and the reference pass, of one group
kernels    update and decoding again with the fused kernels of liger-kernel, and how far log-probabilities move
step       a whole step against the plain batch and TRL (grpo_step.py)
preflight  `locus preflight` of the 24 GB configs on photos (--photos FOLDER with annotations/ and train2017/)
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).resolve().parent)]

import grpo_step  # noqa: E402
import torch  # noqa: E402

CUDA = torch.cuda.is_available()
MODELS = {"qwen": ("qwen-7b-24gb", "tiny"), "onevision": ("onevision-7b-24gb", "tiny-onevision"), "llava": ("llava-7b-24gb", "tiny-llava")}
"""Name -> workload, and its tiny form."""
SECONDS = {"check": 45, "decode": 95, "update": 30, "kernels": 40, "step": 150, "preflight": 80}
"""How long a part takes for one model on an H200, about; a tiny one takes a tenth."""
WEIGHTS: dict[str, dict[str, Any]] = {"4 bits": {"dequantize": False}, "copies": {"dequantize": True}, "merged": {"merge_adapters": True}}
"""What decoding multiplies with."""


def clock() -> float:
    """Seconds, when the device has done what it was given."""
    if CUDA:
        torch.cuda.synchronize()
    return perf_counter()


class Subject:
    """A model of a workload's shape on the device, with prompts."""

    def __init__(self, workload: grpo_step.Workload, folder: Path, kernels: str | None = None) -> None:
        torch.manual_seed(0)
        self.workload, self.folder = workload, folder
        self.module = grpo_step.locus_module(workload, str(folder), share=True)
        self.backbone = self.module.backbone
        self.backbone.quantize, self.backbone.kernels = "nf4", kernels  # in the tiny form too
        self.backbone.load()
        self.backbone.to("cuda" if CUDA else "cpu").train(False)
        for name, parameter in self.backbone.named_parameters():  # adapters that do something
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=1e-3)

    def prompts(self, count: int) -> list[Any]:
        """That many."""
        return self.module.encode([grpo_step.sample(self.workload, i) for i in range(count)])  # type: ignore[no-any-return]

    def decode(
        self, prompts: Any, tokens: int, group: int | None = None, temperature: float = 0.0, to_the_end: bool = True, **settings: Any
    ) -> list[Any]:
        """Generations, flat; every completion as long as it may be, where ``to_the_end``."""
        from locus_lightning.rollout.base import SamplingParams
        from locus_lightning.rollout.hf import HFRollout

        sampling = SamplingParams(tokens, temperature=temperature, min_new_tokens=tokens if to_the_end else 0)
        groups = HFRollout(prompts_at_once=len(prompts), **settings).generate(
            self.backbone, prompts, group or self.workload.group, sampling
        )
        return [made for group_made in groups for made in group_made]


# ---- parts ---------------------------------------------------------------------------------------------------------------


def check(subject: Subject) -> dict[str, Any]:
    """What has to be equal, and by how much it is not."""
    backbone, prompts = subject.backbone, subject.prompts(2)
    captured = subject.decode(prompts, 24, 4, dequantize=False)
    uncaptured, copies = subject.decode(prompts, 24, 4, capture=False, dequantize=False), subject.decode(prompts, 24, 4, dequantize=True)
    backbone.shares_keys = False
    repeated = subject.decode(prompts, 24, 4, dequantize=False)
    backbone.shares_keys = True
    found: dict[str, Any] = {"captured": CUDA}
    for name, other in (("uncaptured", uncaptured), ("copies", copies), ("repeated prompts", repeated)):
        same = [torch.equal(a.ids_T, b.ids_T) for a, b in zip(captured, other, strict=True)]
        first = [abs(float(a.logps_T[0] - b.logps_T[0])) for a, b in zip(captured, other, strict=True)]
        found[f"completions equal to {name}"] = f"{sum(same)} of {len(same)}"
        found[f"first log-probability, largest difference to {name}"] = max(first)
    for name, settings in WEIGHTS.items():
        sampled = subject.decode(prompts, 24, 4, temperature=1.0, to_the_end=False, **settings)
        ids = [[made.ids_T for made in sampled[4 * b : 4 * b + 4]] for b in range(2)]
        with torch.no_grad():
            logps, _ = backbone.logps(prompts, ids)
        gaps = torch.cat([(logps[k // 4, k % 4, : len(made.logps_T)] - made.logps_T).abs() for k, made in enumerate(sampled)])
        found |= {f"sampler gap, {name}, mean": float(gaps.mean()), f"sampler gap, {name}, largest": float(gaps.max())}
    gradients = []
    for share in (True, False):
        values, _ = backbone.logps(prompts[:1], ids[:1], share_prefix=share)
        values.sum().backward()
        trained = [p for p in backbone.parameters() if p.requires_grad]
        gradients.append(torch.cat([p.grad.flatten().float() for p in trained if p.grad is not None]))
        backbone.zero_grad()
    found["gradients packed and plain, relative difference"] = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    found["8-bit AdamW resumed, largest difference of a weight"] = resumed()
    return found


def resumed() -> float:
    """Three steps of paged 8-bit AdamW, against one, a saved and restored state, and two more."""
    from bitsandbytes.optim import PagedAdamW8bit

    def run(save_after: int | None) -> torch.Tensor:
        torch.manual_seed(1)
        weight = torch.nn.Parameter(torch.randn(64, 256, device="cuda" if CUDA else "cpu"))
        optimizer = PagedAdamW8bit([weight], lr=1e-3)
        for step in range(3):
            weight.grad = torch.randn_like(weight)
            optimizer.step()
            if step == save_after:
                state = through_a_file(optimizer.state_dict())
                optimizer = PagedAdamW8bit([weight], lr=1e-3)
                optimizer.load_state_dict(state)
        return weight.detach()

    def through_a_file(state: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "state.pt")
            return torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=False)

    return float((run(None) - run(0)).abs().max())


def decode(subject: Subject, sizes: tuple[int, ...] = (2, 8, 16)) -> dict[str, Any]:
    """Milliseconds a token by rows: a run of many tokens less one of few, over the difference."""
    rows: dict[str, Any] = {}
    for count in sizes:
        for weights, settings in WEIGHTS.items():
            for name, capture in (("captured", None), ("uncaptured", False)):
                if capture is False and (not CUDA or count != sizes[0]):
                    continue
                of = f"{count * subject.workload.group} rows, {weights}, {name if CUDA else 'CPU'}"
                rows[of] = a_token(subject, count, capture=capture, **settings)
    return rows | {f"a step, {weights}": operations(subject, **settings) for weights, settings in WEIGHTS.items()}


def a_token(subject: Subject, count: int, **settings: Any) -> dict[str, float]:
    """Of decoding that many prompts."""
    prompts, (few, many) = subject.prompts(count), (4, 12) if subject.workload.gpu is False else (16, 80)
    subject.decode(prompts, few, **settings)
    spent = []
    for tokens in (few, many):
        started = clock()
        subject.decode(prompts, tokens, **settings)
        spent.append(clock() - started)
    return {"ms a token": 1e3 * (spent[1] - spent[0]) / (many - few), "prefill and capture, s": spent[0]}


def operations(subject: Subject, **settings: Any) -> dict[str, Any]:
    """What a step of decoding consists of: kernels on a GPU, tensor operations that compute on a CPU."""
    from torch.profiler import ProfilerActivity, profile

    prompts = subject.prompts(1)

    def counted(tokens: int) -> tuple[int, float]:
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]) as profiler:
            subject.decode(prompts, tokens, **settings)
            clock()
        events = profiler.key_averages()
        if CUDA:
            own = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
            return sum(e.count for e in own), sum(e.self_device_time_total for e in own) / 1e3
        own = [e for e in events if e.key.startswith("aten::") and e.self_cpu_time_total > 0 and e.key not in _VIEWS]
        return sum(e.count for e in own), sum(e.self_cpu_time_total for e in own) / 1e3

    subject.decode(prompts, 4, **settings)
    (few, few_ms), (many, many_ms) = counted(8), counted(24)
    return {"kernels a token" if CUDA else "operations a token": (many - few) / 16, "their ms a token": (many_ms - few_ms) / 16}


_VIEWS = {f"aten::{name}" for name in (
    "view", "reshape", "transpose", "t", "slice", "select", "as_strided", "unsqueeze", "squeeze", "expand", "permute", "flatten", "unflatten",
    "linear", "matmul", "empty", "empty_like", "empty_strided", "alias", "detach", "narrow", "split", "chunk", "to", "_unsafe_view", "unbind")}  # fmt: skip


def update(subject: Subject) -> dict[str, Any]:
    """Seconds of one group, median of three after one; peak memory."""
    backbone, w, prompts = subject.backbone, subject.workload, subject.prompts(1)
    ids = [[torch.randint(10, 200, (w.tokens,), device=prompts[0].ids_P.device) for _ in range(w.group)]]

    def forward_backward() -> None:
        backbone.logps(prompts, ids)[0].sum().backward()
        backbone.zero_grad()

    def reference() -> None:
        with torch.no_grad():
            backbone.logps(prompts, ids, reference=True)

    found: dict[str, Any] = {"tokens": len(prompts[0].ids_P) + w.group * w.tokens}
    backbone.train(True)
    for name, work in (("forward and backward, s", forward_backward), ("reference, s", reference)):
        work()
        spent = []
        for _ in range(3):
            started = clock()
            work()
            spent.append(clock() - started)
        found[name] = median(spent)
    backbone.train(False)
    return found


def kernels(subject: Subject, count: int = 8) -> dict[str, Any]:
    """Plain, and a model of the same weights with fused kernels."""
    from locus_lightning.backbones.kernels import check_installed

    check_installed()

    def measured(subject: Subject) -> tuple[torch.Tensor, dict[str, Any]]:
        prompts = subject.prompts(1)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(10, 200, (subject.workload.group, subject.workload.tokens), generator=generator).to(prompts[0].ids_P.device)
        with torch.no_grad():
            logps = subject.backbone.logps(prompts, [list(ids)])[0]
        return logps, {**update(subject), **a_token(subject, count), **operations(subject)}

    plain, found = measured(subject)
    if not CUDA:
        return {"plain": found, "fused": "needs a GPU"}
    fused, found_fused = measured(Subject(subject.workload, subject.folder, kernels="liger"))
    apart = (fused - plain).abs()
    return {"plain": found, "fused": found_fused, "log-probability apart, mean": float(apart.mean()), "largest": float(apart.max())}


def step(name: str, minutes: float) -> dict[str, Any]:
    """Medians of grpo_step.py in processes of its own: two steps to warm up, two measured."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "step.json"
        engines = ["locus", "plain"] if grpo_step.WORKLOADS[name].gpu is False else ["locus", "trl"]
        command = [sys.executable, str(Path(grpo_step.__file__)), "--workload", name, "--engines", *engines, "--rounds", "1"]
        command += ["--steps", "2" if CUDA else "1", "--warmup", "2" if CUDA else "1", "--json", str(report)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * minutes)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1:]}
        engines_found = json.loads(report.read_text())["engines"]
    return {engine: {**row.get("seconds", {}), "peak MB": row.get("peak_mb"), **({"failed": row["failed"]} if "failed" in row else {})}
            for engine, row in engines_found.items()}  # fmt: skip


def preflight(config: str, checkpoint: Path, photos: Path | None, tiny: bool) -> dict[str, Any]:
    """The report of `locus preflight` without its samples."""
    if photos is None:
        return {"left out": "give --photos FOLDER"}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "locus_lightning",
            "preflight",
            "--config",
            str(ROOT / "configs" / config),
            f"--checkpoint={checkpoint}",
        ]
        command += [
            f"--data.source.annotations={photos / 'annotations' / 'instances_train2017.json'}",
            f"--data.source.images={photos / 'train2017'}",
        ]
        command += ["--model.groups_per_step=8", "--data.batch_size=8", "--card", "24", "--save", folder]
        command += (
            ["--model.groups_per_step=2", "--data.batch_size=2", "--model.sampling.max_new_tokens=6", "--trainer.accelerator=cpu"]
            if tiny
            else []
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), cwd=folder)
        report = Path(folder) / "report.json"
        if not report.is_file():
            return {"failed": done.stderr.strip().splitlines()[-1:]}
        found = json.loads(report.read_text())
    return {key: value for key, value in found.items() if key != "samples"}


def environment() -> dict[str, str]:
    """This process's, with the sources on the path."""
    import os

    return {**os.environ, "PYTHONPATH": ":".join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(":")}


# ---- all of it -----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the parts while there are minutes, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(SECONDS), default=list(SECONDS))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["qwen", "onevision", "llava"])
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--minutes", type=float, default=8.0, help="parts that would not end within these are left out")
    parser.add_argument("--photos", type=Path, help="a folder laid out as COCO's, for preflight")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    if not CUDA and not options.tiny:
        raise SystemExit("no GPU is visible here; --tiny runs toy sizes on a CPU.")
    began, results = perf_counter(), {"device": torch.cuda.get_device_name() if CUDA else "CPU", "versions": grpo_step.versions()}

    def part(name: str, model: str, work: Callable[[], dict[str, Any]]) -> None:
        expected = SECONDS[name] / (10 if options.tiny else 1)
        left = 60 * options.minutes - (perf_counter() - began)
        if name not in options.parts:
            return
        if left < expected:
            results.setdefault(model, {})[name] = {"left out": f"{left:.0f} s were left, it takes about {expected:.0f}"}  # type: ignore[union-attr,index]
            return
        print(f"{model}, {name}: about {expected:.0f} s ...", flush=True)
        started = perf_counter()
        try:
            found = work()
        except Exception as cause:  # the other parts are worth having
            found = {"failed": f"{type(cause).__name__}: {cause}"[:400]}
        found["took, s"] = round(perf_counter() - started, 1)
        results.setdefault(model, {})[name] = found  # type: ignore[union-attr,index]
        print(json.dumps(found, indent=1), flush=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")

    import checkpoints

    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            workload_name = MODELS[model][options.tiny]
            workload = grpo_step.WORKLOADS[workload_name]
            checkpoint = getattr(checkpoints, workload.checkpoint)(Path(folder) / model)
            if {"check", "decode", "update", "kernels"} & set(options.parts):
                subject = Subject(workload, checkpoint)
                part("check", model, lambda s=subject: check(s))  # type: ignore[misc]
                part("update", model, lambda s=subject: update(s))  # type: ignore[misc]
                part("decode", model, lambda s=subject: decode(s, (1, 2) if options.tiny else (2, 8, 16)))  # type: ignore[misc]
                part("kernels", model, lambda s=subject: kernels(s, 1 if options.tiny else 8))  # type: ignore[misc]
                del subject
                gc.collect()
                if CUDA:
                    torch.cuda.empty_cache()
            left = options.minutes - (perf_counter() - began) / 60
            if model == "qwen":  # TRL runs this one
                part("step", model, lambda n=workload_name, m=left: step(n, m))  # type: ignore[misc]
            if model != "llava":
                config = "qwen2_5_vl.yaml" if model == "qwen" else "llava.yaml"
                part("preflight", model, lambda c=config, k=checkpoint: preflight(c, k, options.photos, options.tiny))  # type: ignore[misc]
    print(table(results))
    print(f"{options.json}: all figures")


def table(results: dict[str, Any]) -> str:
    """Models in columns, figures in rows, for docs/benchmarks.md."""
    models = [name for name in MODELS if name in results]
    flat: dict[str, dict[str, str]] = {}

    def walk(prefix: str, model: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}{': ' if prefix else ''}{key}", model, inner)
        else:
            flat.setdefault(prefix, {})[model] = f"{value:.4g}" if isinstance(value, float) else str(value)

    for model in models:
        walk("", model, results[model])
    lines = [f"| {results['device']} | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    return "\n".join(lines + [f"| {name} | " + " | ".join(row.get(m, "") for m in models) + " |" for name, row in flat.items()])


if __name__ == "__main__":
    main()
