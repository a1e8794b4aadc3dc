"""Counts the operations of one decoding step as a GPU would be given them, on any machine and without weights.

    python benchmarks/kernel_count.py                # Qwen2.5-VL-7B's shape with LoRA of rank 64
    python benchmarks/kernel_count.py --tiny         # a toy of the same architecture: the tests run this

The model stands on torch's fake tensors, which have the shapes, types and device of a GPU's and no memory. Every operation that computes is
counted; views are not. Most operations are one kernel, and a few are two, so the count is a lower bound of kernels. A product with 4-bit
weights counts as one operation: bitsandbytes runs one kernel for few rows and four for many, and a product with a copy is one in any case.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).resolve().parent)]

import checkpoints  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from transformers.cache_utils import DynamicCache  # noqa: E402

from locus_lightning.backbones import decoding_weights, kernels, loading  # noqa: E402
from locus_lightning.backbones.adapters import LoRA, add_adapters  # noqa: E402
from locus_lightning.backbones.shared_prefix import attention  # noqa: E402
from locus_lightning.backbones.shared_prefix.cache import GroupCache  # noqa: E402
from locus_lightning.backbones.toy.qwen import qwen2_5_vl  # noqa: E402
from locus_lightning.rollout.base import SamplingParams  # noqa: E402
from locus_lightning.rollout.decoding import sample_token  # noqa: E402

KINDS = {
    "products with weights": {"mm", "addmm", "addmm_"},
    "products of attention": {"bmm", "baddbmm"},
    "softmax": {"_softmax", "_log_softmax"},
    "norms": {"_fused_rms_norm", "rsqrt", "mean", "pow", "native_layer_norm"},
    "copies": {"_to_copy", "clone", "copy_", "cat", "index_copy_", "index_copy", "index_put_", "new_zeros", "zeros_like"},
}
"""Kind -> operations; what is not named is ``elementwise, other``."""
NO_KERNEL = {"detach", "alias", "empty", "empty_like", "new_empty", "empty_strided", "_local_scalar_dense", "device", "lift_fresh", "sym_size",
             "_unsafe_view"}  # fmt: skip
PROMPTS, GROUP, PROMPT, ROOM = 8, 8, 1400, 128


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_KERNEL and func.namespace in ("aten", "bitsandbytes"):
            self.names[name] += 1
        return func(*args, **(kwargs or {}))


def by_kind(names: Counter[str]) -> Counter[str]:
    """The same counts, summed by kind."""
    kinds: Counter[str] = Counter()
    for name, count in names.items():
        kinds[next((kind for kind, members in KINDS.items() if name in members), "elementwise, other")] += count
    return kinds


def shape(tiny: bool) -> tuple[Any, Any]:
    """(model class, config)."""
    return (type(model := qwen2_5_vl()[0]), model.config) if tiny else checkpoints.qwen_7b_shape()[:2]


def on_fake_gpu(module: nn.Module, dtype: torch.dtype) -> None:
    """Put fake tensors of a GPU in the place of parameters and buffers on the meta device; adapters keep float32."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                kept = parameter.dtype if not parameter.is_floating_point() or type(part).__name__ == "_InTypeOfInput" else dtype
                part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=kept, device="cuda"), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


@torch.no_grad()
def counted(tiny: bool, layers: int, rank: int, fused_norms: bool, decoding: str) -> Counter[str]:
    """Operations of a step by name.

    Args:
        tiny: a toy's sizes.
        layers: of the language model.
        rank: of LoRA.
        fused_norms: as the backbone runs them, or as transformers writes them.
        decoding: ``training`` (adapters as in training), ``4 bits``, ``copies`` or ``merged``.
    """
    kind, config = shape(tiny)
    config.text_config.num_hidden_layers = layers
    checkpoints.every_layer_full(config)
    with torch.device("meta"):
        model = kind._from_config(config, dtype=torch.bfloat16, attn_implementation=attention.register())
    model = add_adapters(model, LoRA(rank, rank), loading._language_linears(model))
    if fused_norms:
        kernels.fuse_norms(model)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_gpu(model, torch.bfloat16)
        for _, _, layer in decoding_weights.adapted_layers(model):
            layer.get_base_layer().quant_state = None  # what marks 4-bit weights
        plain, decoding_weights._plain_weight = decoding_weights._plain_weight, lambda layer: decoding_weights._base(layer).weight
        replaced = {
            "training": torch.no_grad,
            "4 bits": lambda: decoding_weights.fused_adapters(model, torch.bfloat16),
            "copies": lambda: decoding_weights.fused_adapters(model, torch.bfloat16, dequantize=True),
            "merged": lambda: decoding_weights.merged_adapters(model, torch.bfloat16),
        }[decoding]
        try:
            with replaced():
                return step(model.get_base_model())
        finally:
            decoding_weights._plain_weight = plain


def step(model: Any) -> Counter[str]:
    """One token for every row."""
    text, cache, rows = model.config.get_text_config(), DynamicCache(), PROMPTS * GROUP
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    for layer in range(text.num_hidden_layers):
        keys = torch.empty(PROMPTS, text.num_key_value_heads, PROMPT, width, dtype=torch.bfloat16, device="cuda")
        cache.update(keys, keys.clone(), layer)
    padding_BP = torch.zeros(PROMPTS, PROMPT, dtype=torch.bool, device="cuda")
    group = GroupCache(cache, padding_BP, GROUP, ROOM)
    token_R1, position_R1 = (torch.zeros(rows, 1, dtype=torch.long, device="cuda") for _ in range(2))
    with mixed_precision(), Counted() as names:
        group.begin_step()
        hidden_RD = model.base_model(input_ids=token_R1, position_ids=position_R1, cache=group, use_cache=True).last_hidden_state[:, -1]
        group.end_step()
        sample_token(model.get_output_embeddings()(hidden_RD).float(), SamplingParams(ROOM))
    return names.names


@contextmanager
def mixed_precision() -> Iterator[None]:
    """Autocast to bfloat16 on a GPU, as ``trainer.precision: bf16-mixed`` has it. ``torch.autocast`` itself refuses without one."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def main() -> None:
    """Count with two depths, print the table of a whole model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a toy's sizes")
    parser.add_argument("--rank", type=int, default=64, help="of LoRA")
    parser.add_argument("--json", type=Path, help="write the counts here")
    options = parser.parse_args()
    attention._sums_in_float32 = lambda dtype: True  # asked of the GPU otherwise
    depth = shape(options.tiny)[1].text_config.num_hidden_layers
    rows = {}
    for title, fused, decoding in (
        ("as in training, plain norms", False, "training"), ("adapters fused, plain norms", False, "4 bits"),
        ("adapters fused", True, "4 bits"), ("adapters fused, copies of 4-bit weights", True, "copies"), ("adapters merged", True, "merged"),
    ):  # fmt: skip
        one, two = (by_kind(counted(options.tiny, layers, options.rank, fused, decoding)) for layers in (1, 2))
        layer = Counter({kind: two[kind] - one[kind] for kind in two})
        rows[title] = {
            "a layer": layer.total(), "outside of layers": one.total() - layer.total(), "a token": one.total() + (depth - 1) * layer.total(),
            **{f"a layer: {kind}": layer[kind] for kind in (*KINDS, "elementwise, other")},
        }  # fmt: skip
    columns = list(next(iter(rows.values())))
    print("| decoding | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for title, row in rows.items():
        print(f"| {title} | " + " | ".join(f"{row[column]:,}" for column in columns) + " |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
