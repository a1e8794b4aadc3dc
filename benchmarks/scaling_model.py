"""A small model of a GRPO step on many GPUs: seconds by phase from figures measured on one, for DDP with adapters.

    uv run python benchmarks/scaling_model.py
    uv run python benchmarks/scaling_model.py --prompts 128 --tokens 150 --ms-token 25 --at-once 16

The figures that it starts from are those of docs/benchmarks.md (one H200, Qwen2.5-VL-7B's shape, NF4, LoRA of rank 64); give your own from
`locus preflight`. Assumptions, all of them optimistic or pessimistic in a known direction:

- Each GPU takes an equal share of the prompts and decodes as many at once as it holds; a token takes the same time for any number of rows.
- All wait for the slowest: with completions that end early, the longest of each GPU's batches decides. Here all run to their limit, which is
  the worst case and the same for every number of GPUs.
- Gradients of the adapters go round once a step in a ring: 2 (n - 1) / n times their bytes over the slowest link.
- Validation, checkpoints and the loader are left out.
"""

from __future__ import annotations

import argparse
import math

MEASURED = {"rollout": "9.9-10.1", "reference": "0.22-0.30", "update": "0.93-1.00"}
"""Seconds of the step of docs/benchmarks.md on commit e8e1d94: 2 prompts of 1,323 tokens x 8 x 128, decoding that was not captured."""
PROBED = {"tokens": 128, "ms_token": 148.5, "at_once": 2, "prefill": 0.08, "reference": 0.18, "update": 0.48}
"""What probes of single phases gave on the same card and commit."""


def step(prompts: int, gpus: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one step by phase."""
    own = math.ceil(prompts / gpus)
    rounds = math.ceil(own / options.at_once)
    return {
        "rollout": rounds * options.tokens * options.ms_token / 1e3 + own * options.prefill,
        "reference": own * options.reference,
        "update": own * options.update,
        "gradients": 0.0
        if gpus == 1
        else 2 * (gpus - 1) / gpus * options.adapter_mb / 1e3 / (options.nvlink if gpus <= 8 else options.network),
    }


def main() -> None:
    """Print the check against what was measured, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128, help="of an optimiser step, all GPUs together")
    parser.add_argument("--tokens", type=int, default=150, help="of a completion")
    parser.add_argument("--ms-token", type=float, default=28.2, help="a decoding step of --at-once prompts; captured, 128 rows (prototype)")
    parser.add_argument("--at-once", type=int, default=16, help="prompts decoded together on one GPU")
    parser.add_argument("--prefill", type=float, default=0.06, help="seconds a prompt")
    parser.add_argument("--reference", type=float, default=0.18, help="seconds a prompt with its group")
    parser.add_argument("--update", type=float, default=0.45, help="seconds a prompt with its group, forward and backward")
    parser.add_argument("--adapter-mb", type=float, default=646.0, help="gradients of the adapters: 161 M numbers of 4 bytes")
    parser.add_argument("--nvlink", type=float, default=150.0, help="GB/s between GPUs of one machine, up to 8")
    parser.add_argument("--network", type=float, default=25.0, help="GB/s between machines")
    options = parser.parse_args()
    modelled = step(2, 1, argparse.Namespace(**{**vars(options), **PROBED}))
    print("check against the step that was measured, from probes of its phases (the probe decoded at half the speed of the step itself):")
    print(*(f"  {phase}: measured {measured} s, modelled {modelled[phase]:.2f} s" for phase, measured in MEASURED.items()), sep="\n")
    print(f"\n{options.prompts} prompts x 8 completions x {options.tokens} tokens, {options.ms_token} ms a token:\n")
    print("| GPUs | rollout | reference | update | gradients | step, s | speed-up | 400 steps, h |")
    print("|---|---|---|---|---|---|---|---|")
    alone = sum(step(options.prompts, 1, options).values())
    for gpus in (1, 2, 8, 64):
        parts = step(options.prompts, gpus, options)
        whole = sum(parts.values())
        cells = " | ".join(f"{value:.1f}" if value >= 0.1 else f"{value:.2f}" for value in parts.values())
        print(f"| {gpus} | {cells} | {whole:.1f} | {alone / whole:.1f} | {400 * whole / 3600:.1f} |")


if __name__ == "__main__":
    main()
