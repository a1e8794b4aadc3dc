"""Where the time of a locus step goes: kernels by kind and what is left for Python, in sampling, reference and update.

    python benchmarks/profile_step.py --workload tiny

Profiling costs time of its own, mostly where many small kernels run, so read the shares; grpo_step.py gives the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from time import perf_counter
from typing import Any

import grpo_step

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution", "aten::mkldnn"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash_attention", "aten::_efficient_attention"),
    "softmax and sampling": (
        "aten::_softmax",
        "aten::_log_softmax",
        "aten::softmax",
        "aten::multinomial",
        "aten::sort",
        "aten::exponential",
    ),
    "copies and joins": ("aten::copy_", "aten::cat", "aten::gather", "aten::index", "aten::scatter", "aten::fill_", "aten::clone"),
}
"""Kernels by the beginning of their names; all others are "elementwise and other"."""


def kind_of(name: str) -> str:
    """Which of :data:`KINDS` a kernel belongs to."""
    return next((kind for kind, names in KINDS.items() if name.startswith(names)), "elementwise and other")


def profiled(workload: grpo_step.Workload, folder: str, threads: int) -> dict[str, dict[str, float]]:
    """Shares of one step, after a step to warm up: phase -> kind -> seconds, ``Python`` being the wall-clock time in no kernel."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from locus_lightning.data.source import CueBatch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = grpo_step.locus_module(workload, folder, share=True)
    module.backbone.load()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-6)
    spans: dict[str, float] = {}

    def phase(name: str, work: Any) -> Any:
        started = perf_counter()
        with record_function(f"phase {name}"):
            out = work()
        spans[name] = perf_counter() - started
        return out

    def step(index: int) -> None:
        batch = CueBatch([grpo_step.sample(workload, workload.prompts * index + b) for b in range(workload.prompts)])
        backbone = module.backbone

        def roll() -> Any:
            with backbone.sampling():
                prompts = module.encode(list(batch))
                return prompts, module.rollout.generate(backbone, prompts, workload.group, module.sampling)

        prompts, made = phase("rollout", roll)
        said = [[one.ids_T for one in group] for group in made]

        def reference() -> Any:
            with torch.no_grad():
                return backbone.logps(prompts, said, reference=True)[0]

        ref = phase("reference", reference)

        def update() -> None:
            logps, _ = backbone.logps(prompts, said)
            (logps - ref).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        phase("update", update)

    step(0)
    with profile(activities=[ProfilerActivity.CPU]) as prof:
        step(1)
    events = prof.events()
    ranges = {e.name.removeprefix("phase "): (e.time_range.start, e.time_range.end) for e in events if e.name.startswith("phase ")}
    found: dict[str, dict[str, float]] = {name: defaultdict(float) for name in ranges}
    for event in events:
        if event.name.startswith("phase "):
            continue
        for name, (start, end) in ranges.items():
            if start <= event.time_range.start < end and event.name.startswith("aten::"):
                found[name][kind_of(event.name)] += event.self_cpu_time_total / 1e6
    return {name: {**kinds, "Python": max(0.0, spans[name] - sum(kinds.values()))} for name, kinds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[name for name, w in grpo_step.WORKLOADS.items() if not w.gpu], default="tiny")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    asked = parser.parse_args()
    import checkpoints
    from rich.console import Console
    from rich.table import Table

    workload = grpo_step.WORKLOADS[asked.workload]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = getattr(checkpoints, workload.checkpoint)(Path(folder) / "checkpoint")
        found = profiled(workload, str(checkpoint), asked.threads)
    table = Table(title=f"{asked.workload}: a step under the profiler")
    kinds = [*KINDS, "elementwise and other", "Python"]
    for column in ("phase", "seconds", *kinds):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for name, seconds in found.items():
        whole = sum(seconds.values())
        table.add_row(name, f"{whole:.2f}", *(f"{seconds.get(kind, 0.0) / whole:.0%}" for kind in kinds))
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
