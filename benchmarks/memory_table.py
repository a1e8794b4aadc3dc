"""What fits on one card, computed by the model of memory that `locus preflight` uses.

    uv run python benchmarks/memory_table.py

No weights are loaded: the architectures stand on the meta device at the sizes that their authors published. Every figure is computed;
`locus preflight --config ... ` on a GPU measures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from checkpoints import QWEN2_7B, SIGLIP
from transformers import logging

from locus_lightning.backbones import loading
from locus_lightning.backbones.toy.llava import llava, llava_onevision
from locus_lightning.backbones.toy.qwen import qwen2_5_vl, qwen3_vl
from locus_lightning.training import memory

QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336}


def shape(build: Any, text: dict[str, Any], vision: dict[str, Any], **top: Any) -> memory.Sizes:
    """A toy's architecture at another size."""
    config = build()[0].config
    config.text_config.update(text)
    config.vision_config.update(vision)
    config.update(top)
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
    return memory.sizes(loading.skeleton(config))


def models() -> dict[str, memory.Sizes]:
    """Name -> sizes."""
    return {
        "Qwen2.5-VL-7B": shape(qwen2_5_vl, {**QWEN2_7B, "vocab_size": 152064}, {**QWEN_VISION, "out_hidden_size": 3584}),
        "Qwen2.5-VL-3B": shape(
            qwen2_5_vl,
            {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
             "vocab_size": 151936},
            {**QWEN_VISION, "out_hidden_size": 2048}, tie_word_embeddings=True,
        ),
        "Qwen3-VL-8B": shape(
            qwen3_vl,
            {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
             "head_dim": 128, "vocab_size": 151936},
            {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
             "deepstack_visual_indexes": [8, 16, 24]},
        ),
        "LLaVA-OneVision-7B": shape(llava_onevision, {**QWEN2_7B, "vocab_size": 152000}, SIGLIP),
        "LLaVA-1.5-7B": shape(
            llava,
            {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
             "head_dim": 128, "vocab_size": 32064},
            CLIP,
        ),
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    logging.set_verbosity_error()
    known = models()
    qlora = memory.Load(
        prompt=1400, completion=256, group=8, micro_batch=1, decoded=0, batch=64, card=24 * memory.GIB, copies="auto", optimizer_bytes=2
    )
    rows = [
        ("Qwen2.5-VL-7B", "QLoRA, photo 640x480", replace(qlora, prompt=480)),
        ("Qwen2.5-VL-7B", "QLoRA, 1 Mpx", qlora),
        ("Qwen2.5-VL-7B", "QLoRA, 1 Mpx, plain batch", replace(qlora, packed=False)),
        ("Qwen2.5-VL-7B", "QLoRA, 1 Mpx, no recomputation", replace(qlora, checkpointing=False)),
        ("Qwen2.5-VL-7B", "QLoRA, 2.6 Mpx, 1,024-token answers", replace(qlora, prompt=3500, completion=1024)),
        ("Qwen2.5-VL-7B", "LoRA in 16 bits, 1 Mpx", replace(qlora, nf4=False, copies=False)),
        ("Qwen3-VL-8B", "QLoRA, 1 Mpx", replace(qlora, prompt=1100)),
        ("LLaVA-OneVision-7B", "QLoRA, max_tiles 4", replace(qlora, prompt=5300)),
        ("LLaVA-1.5-7B", "QLoRA, 336 px", replace(qlora, prompt=1250)),
        ("Qwen2.5-VL-3B", "QLoRA, 1 Mpx", qlora),
        ("Qwen2.5-VL-3B", "LoRA in 16 bits, 1 Mpx", replace(qlora, nf4=False, copies=False)),
        ("Qwen2.5-VL-3B", "all weights, KL, AdamW 8 bit, 1 Mpx", replace(qlora, nf4=False, copies=False, rank=0, reference=True)),
    ]
    print("| model | how | prompt | G x tokens | weights | rollout | update | peak, GiB | prompts at once | decoded from | 24 GB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, how, load in rows:
        seen = replace(load, patches=load.prompt * (4 if "Qwen" in name else 1), pixels=3 * 2 * 16 * 16)
        found = {key: value / memory.GIB for key, value in memory.estimate(known[name], seen).items()}
        fits = "yes" if found["peak"] < 22 else "tight" if found["peak"] < 23.5 else "no"
        print(
            f"| {name} | {how} | {load.prompt:,} | {load.group} x {load.completion:,} | {found['weights']:.1f} | {found['rollout']:.1f} "
            f"| {found['update']:.1f} | {found['peak']:.1f} | {found['decoded'] * memory.GIB:.0f} "
            f"| {'16 bits' if not load.nf4 else 'copies' if found['copies'] else '4 bits'} | {fits} |"
        )


if __name__ == "__main__":
    main()
