"""How far `locus preflight`'s arithmetic of activations is from what an update allocates.

    uv run python benchmarks/memory_model.py

Every row is one forward and backward pass over a group (real architecture, random weights, CPU): bytes that torch's allocator had out
at the peak, less those before, against the computed gradients + activations + logits.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from checkpoints import llava_tiny, qwen_tiny
from PIL import Image

from locus_lightning.backbones import loading
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.llava import LlavaBackbone
from locus_lightning.backbones.qwen2_5_vl import Qwen2_5_VLBackbone
from locus_lightning.callbacks.gauge import allocated_peak
from locus_lightning.tasks.cue_search import CueSearch
from locus_lightning.training import memory
from locus_lightning.types import Cue, CueSample, CueWindow


def sample(side: int) -> CueSample:
    """Noise."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))
    box = (20, 20, 120, 120)
    return CueSample("noise", image, Cue(image.crop(box), CueWindow(box, "large")), (20.0, 20.0, 120.0, 120.0))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=448, help="of the image, pixels")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--completion", type=int, default=128, help="tokens of a completion")
    options = parser.parse_args()
    print("What an update takes:\n")
    print("| model | trains | checkpointing | packed | prompt | allocated MB | computed MB | computed / allocated |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, build in (("qwen_tiny", Qwen2_5_VLBackbone, qwen_tiny), ("llava_tiny", LlavaBackbone, llava_tiny)):
            where = build(Path(folder) / name)
            for rank, checkpointing, packed in [(0, True, True), (0, False, True), (16, True, True), (16, False, True), (0, True, False)]:
                row(name, kind, where, rank, checkpointing, packed, options)
        print("\nWhat a rollout's pass over the prompts takes beside their keys:\n")
        print("| model | 4-bit weights | prompts | allocated MB | computed MB | computed / allocated |")
        print("|---|---|---|---|---|---|")
        for name, kind in (("qwen_tiny", Qwen2_5_VLBackbone), ("llava_tiny", LlavaBackbone)):
            for dequantize in (False, True):
                prefill_row(name, kind, Path(folder) / name, dequantize, options)


@torch.no_grad()
def prefill_row(name, kind, where, dequantize, options) -> None:  # type: ignore[no-untyped-def]
    """Measure one setting of decoding."""
    backbone = kind(str(where), quantize="nf4", lora=LoRA(rank=16))
    backbone.load()
    one = sample(options.side)
    (prompt,) = backbone.encode([CueSearch().messages(one, backbone.frame(one.image.size))])
    (features,), caches, count = backbone.features_of([prompt]), [], 8
    ids_BP, positions = prompt.ids_P.expand(count, -1), prompt.positions_P[:, None].expand(-1, count, -1)

    def run() -> None:
        caches[:] = [backbone.empty_cache()]
        backbone.hidden(
            ids_BP, torch.ones_like(ids_BP), positions if len(positions) > 1 else positions[0], features * count, cache=caches[0]
        )

    with backbone.sampling(merge_adapters=False, dequantize=dequantize):
        run()
        caches.clear()
        peak = allocated_peak(run)
    peak -= sum(x.nbytes for layer in caches[0].layers for x in (layer.keys, layer.values))
    computed = backbone.prefill_bytes(ids_BP.numel())
    print(
        f"| {name} | {'from copies' if dequantize else 'themselves'} | {count} x {ids_BP.shape[1]} | {peak / 1e6:.0f} | {computed / 1e6:.0f} "
        f"| {computed / peak:.2f} |"
    )


def row(name, kind, where, rank, checkpointing, packed, options) -> None:  # type: ignore[no-untyped-def]
    """Measure one setting."""
    backbone = kind(str(where), lora=LoRA(rank=rank) if rank else None, gradient_checkpointing=checkpointing, share_prefix=packed)
    backbone.load()
    backbone.train()
    one = sample(options.side)
    prompts = backbone.encode([CueSearch().messages(one, backbone.frame(one.image.size))])
    completions = [[torch.randint(5, 300, (options.completion,)) for _ in range(options.group)]]

    def update() -> None:
        backbone.logps(prompts, completions)[0].sum().backward()

    update()  # once to warm up
    for parameter in backbone.parameters():
        parameter.grad = None
    peak = allocated_peak(update)
    load = memory.Load(
        prompt=len(prompts[0].ids_P), completion=options.completion, group=options.group, micro_batch=1, decoded=1, weight_bytes=4,
        nf4=False, rank=rank, checkpointing=checkpointing, packed=packed,
    )  # fmt: skip
    found = memory.estimate(memory.sizes(loading.skeleton(backbone.hf.config)), load)
    computed = found["gradients"] + found["activations"] + found["logits"]
    print(
        f"| {name} | {f'LoRA r={rank}' if rank else 'all'} | {'yes' if checkpointing else 'no'} | {'yes' if packed else 'no'} "
        f"| {load.prompt} | {peak / 1e6:.0f} | {computed / 1e6:.0f} | {computed / peak:.2f} |"
    )


if __name__ == "__main__":
    main()
