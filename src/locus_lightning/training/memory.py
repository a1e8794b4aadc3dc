"""What training a checkpoint costs in memory, computed from its config: no weights are loaded.

The weights' part is exact. Activations follow a count of the tensors that a decoder layer keeps for its backward pass (our own
arithmetic; ``benchmarks/memory_model.py`` holds it against what was allocated). What CUDA itself takes and what the allocator wastes are
not counted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from locus_lightning.backbones import loading
from locus_lightning.backbones.encoding import TOWER_PROMPTS
from locus_lightning.backbones.facts import LOGITS_IN_SAMPLING, prefill_numbers
from locus_lightning.backbones.token_logps import CHUNK
from locus_lightning.data.source import CueKey, evenly_spaced
from locus_lightning.rollout.decoding import prefilled
from locus_lightning.rollout.hf import AT_ONCE, HFRollout, takes_no_more_rounds, that_fit
from locus_lightning.training.base import TaskModule
from locus_lightning.training.grpo import LocusModule
from locus_lightning.training.sharding import FSDP2Strategy
from locus_lightning.types import Prompt, Question

log = logging.getLogger(__name__)

GIB = 2**30
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight: a code, a byte of scale for 64 weights, 4 bytes of its own scale for 256 such."""
_LOGITS, _LOGITS_WITH_GRADIENT = 2, 3
"""Copies of the logits, (positions, vocabulary) in float32, at the peak of log-probabilities and of their backward pass; measured."""


@dataclass(frozen=True)
class Sizes:
    """A model's numbers: parameters by part, and the shape of its language model.

    ``linears`` are (inputs, outputs) of the language model's linear layers, head left out; ``other`` counts embeddings, norms and head.
    """

    linears: tuple[tuple[int, int], ...]
    other: int
    vision: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    vision_hidden: int
    vision_intermediate: int


@dataclass(frozen=True)
class Load:
    """What is asked of the model.

    Args:
        prompt: tokens of the longest prompt.
        completion: tokens of a completion, at most.
        group: completions a prompt.
        micro_batch: prompts of an update pass.
        decoded: prompts decoded together; 0: as many as the card holds, as ``HFRollout`` counts them.
        card: bytes of the card; needed where ``decoded`` is 0.
        copies: decoding multiplies with copies of the linear weights (``merge_adapters``, ``dequantize``); auto: where the card has room for
            them, as ``HFRollout`` decides it.
        copied: bytes of these copies; 0: of all linear layers, and of their adapters.
        batch: prompts of a rollout batch, whose features are kept until their update.
        weight_bytes: of a weight that is not quantised.
        nf4: 4-bit linears.
        rank: of LoRA on all linears; 0: all weights of the language model train.
        checkpointing: activations of a layer are recomputed.
        packed: completions share their prompt in an update pass.
        vision_trains: vision weights train too.
        reference: a frozen copy is kept (training all weights with a KL term).
        optimizer_bytes: state a trained parameter: 8 for AdamW, 2 in 8 bits.
        patches: of the images of a prompt, as the tower takes them.
        pixels: numbers of a patch.
        shards: processes that share out weights, gradients and optimiser (``fsdp2``); 1: each holds all.
        gathered_bytes: of a weight while it is gathered from them.
    """

    prompt: int
    completion: int
    group: int
    micro_batch: int
    decoded: int
    weight_bytes: int = 2
    nf4: bool = True
    rank: int = 64
    checkpointing: bool = True
    packed: bool = True
    vision_trains: bool = False
    reference: bool = False
    optimizer_bytes: int = 8
    patches: int = 0
    pixels: int = 3 * 14 * 14
    batch: int = 1
    card: float = 0.0
    copies: bool | Literal["auto"] = False
    copied: float = 0.0
    shards: int = 1
    gathered_bytes: int = 4


def sizes(model: Any) -> Sizes:
    """The sizes of a model on any device; quantised weights cannot be counted, so take ``loading.skeleton`` for those."""
    text = model.config.get_text_config()
    language = loading.language_model(model)
    linears = tuple((m.in_features, m.out_features) for m in language.modules() if isinstance(m, nn.Linear))
    within = sum(m.weight.numel() for m in language.modules() if isinstance(m, nn.Linear))
    vision = sum(p.numel() for p in loading.vision_parameters(model))
    everything = sum(p.numel() for p in model.parameters())
    heads, tower = text.num_attention_heads, model.config.vision_config
    return Sizes(
        linears=linears,
        other=everything - within - vision,
        vision=vision,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        vision_hidden=(width := getattr(tower, "embed_dim", None) or tower.hidden_size),
        vision_intermediate=getattr(tower, "intermediate_size", None) or 4 * width,
    )


def in_unit(most: float) -> tuple[str, int]:
    """(name, bytes) of the unit that suits figures up to ``most`` bytes."""
    return ("GiB", GIB) if most >= GIB / 4 else ("MiB", 2**20)


def estimate(model: Sizes, load: Load) -> dict[str, float]:
    """Bytes by component, ``rollout`` and ``update`` the peaks of the two phases, ``peak`` the larger."""
    b, linear = load.weight_bytes, sum(i * o for i, o in model.linears)
    adapters = sum(load.rank * (i + o) for i, o in model.linears)
    count = (adapters if load.rank else linear + model.other) + (model.vision if load.vision_trains else 0)
    shards, sharded = load.shards, linear + model.other
    parts: dict[str, float] = {"weights": (linear * (_NF4 if load.nf4 else b) + model.other * b) / shards + model.vision * b}
    parts["adapters"] = 4.0 * adapters / shards
    parts["reference"] = float(sharded * b / shards if load.reference and not load.rank else 0)
    parts["gradients"] = float(count * (4 if load.rank else b)) / shards
    parts["optimiser"] = float(count * load.optimizer_bytes) / shards
    # whole for a rollout; what stands outside of layers and two layers at a time for a pass
    parts["gathered"] = float(sharded * load.gathered_bytes if shards > 1 else 0)
    passing = (model.other + 2 * linear / model.layers) * load.gathered_bytes if shards > 1 else 0.0
    parts["features"] = float(load.batch * load.prompt * model.hidden * b)  # nearly all of a prompt is images
    one_layer = 6 * model.vision_hidden + 2 * model.vision_intermediate
    together = min(TOWER_PROMPTS, load.batch) * load.patches
    waiting = load.batch * load.patches * load.pixels * 4.0 if load.vision_trains else 0.0  # pixels that are read again in the update
    parts["tower"] = waiting + together * (one_layer * b + load.pixels * (4 + b))  # pixels as they come, and in the weights' type
    tokens = load.micro_batch * load.group * load.completion
    parts["activations"] = float(_activations(model, load))
    row = min(CHUNK, tokens) * model.vocabulary * 4.0
    parts["logits"] = _LOGITS_WITH_GRADIENT * row
    parts["scoring"] = _LOGITS * row + float(_one_layer(model, load)) + (passing if parts["reference"] else 0.0)
    resident = sum(parts[name] for name in ("weights", "adapters", "reference", "optimiser", "features"))
    # gradients of what stands outside of layers are whole before they are shared out, once more in float32
    whole = model.other * (load.gathered_bytes + 4.0) if shards > 1 and not load.rank else 0.0
    parts["update"] = resident + passing + whole + parts["gradients"] + parts["activations"] + parts["logits"]
    resident += parts["gathered"]
    decoded, parts["copies"] = _decoded(model, load, load.card - resident)
    parts["decoded"] = float(decoded)
    parts["cache"], parts["sampling"] = decoded * _cache(model, load), decoded * _logits(model, load)
    parts["prefill"] = _prefill(model, load, decoded)
    parts["decoding"] = parts["copies"] + parts["cache"] + max(parts["prefill"], parts["sampling"])
    parts["rollout"] = resident + max(parts["tower"], parts["decoding"], parts["scoring"])
    parts["peak"] = max(parts["rollout"], parts["update"])
    return parts


def _decoded(model: Sizes, load: Load, free: float) -> tuple[int, float]:
    """(prompts decoded together, bytes of copies of weights), as ``HFRollout`` chooses them with so many bytes free."""
    # B matrices of layers that read the same input stand in one block, half of it zeros
    copies = load.copied or float(sum(i * o + 1.5 * load.rank * (i + o) for i, o in model.linears) * load.weight_bytes)
    wanted = load.decoded or load.batch
    if not load.card:
        return wanted, copies if load.copies is True else 0.0
    each, prefill = _cache(model, load) + _logits(model, load), _prefill(model, load, load.batch)
    if not load.packed:
        each, prefill = each + _prefill(model, load, 1), 0.0
    alone = load.decoded or min(wanted, that_fit(free, prefill, each, copies=False))
    beside = min(wanted, that_fit(free, prefill + copies, each, copies=True))
    if load.copies is True or (load.copies and takes_no_more_rounds(load.batch, alone, beside)):
        return load.decoded or max(1, beside), copies
    return alone, 0.0


def _prefill(model: Sizes, load: Load, prompts: int) -> float:
    """What a pass over the prompts takes for a moment."""
    tokens = prefilled(prompts, load.prompt) if load.packed else prompts * load.prompt
    return float(tokens * prefill_numbers(model.hidden, model.intermediate) * load.weight_bytes)


def _logits(model: Sizes, load: Load) -> float:
    """Logits and what sampling makes of them, for a prompt's completions."""
    return LOGITS_IN_SAMPLING * 4.0 * load.group * model.vocabulary


def _cache(model: Sizes, load: Load) -> int:
    """Keys and values of a prompt, once where it is shared, and of its completions."""
    position = 2 * model.layers * model.kv_heads * model.head_dim * load.weight_bytes
    return position * (load.prompt * (1 if load.packed else load.group) + load.group * load.completion)


def _activations(model: Sizes, load: Load) -> float:
    """Kept for the backward pass: every layer's input, and what is inside one layer (recomputed) or all of them (not)."""
    inputs = _positions(load) * load.weight_bytes * model.hidden * model.layers
    return inputs + _one_layer(model, load) * (1 if load.checkpointing else model.layers)


def _positions(load: Load) -> int:
    """Positions of an update pass."""
    rows = load.prompt + load.group * load.completion if load.packed else load.group * (load.prompt + load.completion)
    return load.micro_batch * rows


def _one_layer(model: Sizes, load: Load) -> float:
    """What is inside a decoder layer at an update pass."""
    b = load.weight_bytes
    attention = (model.heads + 2 * model.kv_heads) * model.head_dim * 2 + model.heads * model.head_dim  # projected, rotated, read
    norms = 2 * model.hidden * (1 + 4 / b)  # a norm keeps its input in float32 too
    adapters = 7 * load.rank
    # the last factor: copies in other layouts that the count leaves out (benchmarks/memory_model.py)
    return _positions(load) * b * (attention + norms + 2 * model.hidden + 4 * model.intermediate + adapters) * 1.22


# ---- of a training module ------------------------------------------------------------------------------------------------


def longest_prompts(module: TaskModule, count: int) -> list[tuple[int, int, Any]]:
    """(tokens, index, sample) of ``count`` training samples, the longest prompt first; plain questions are left out."""
    data = module.trainer.datamodule.task_dataset("train", module.task)  # type: ignore[attr-defined]
    lengths = []
    for i in evenly_spaced(len(data), count):
        item = data[CueKey(0, i)]
        for sample in item if isinstance(item, tuple) else (item,):
            if not isinstance(sample, Question):
                (content,) = module.contents([sample])
                lengths.append((module.backbone.prompt_length(content), i, sample))
    return sorted(lengths, key=lambda row: row[:2], reverse=True)


def estimate_memory(module: TaskModule, prompt: Prompt) -> dict[str, float] | None:
    """What :func:`estimate` says of a module at a prompt's length; None for an architecture that does not name its sizes as others do."""
    try:
        skeleton = module.backbone.skeleton()
        return None if skeleton is None else estimate(sizes(skeleton), load_of(module, prompt, skeleton))
    except (AttributeError, TypeError, ValueError, KeyError) as cause:
        log.info("memory cannot be computed for this architecture (%s: %s); `locus preflight` measures it.", type(cause).__name__, cause)
        return None


def load_of(module: TaskModule, prompt: Prompt, skeleton: Any) -> Load:
    """What a module's configuration asks of memory, at a prompt's length."""
    backbone = module.backbone
    optimizer, tower = type(module.trainer.optimizers[0]).__name__, skeleton.config.vision_config
    patch: int | Sequence[int] = tower.patch_size
    side = patch if isinstance(patch, int) else patch[0]
    pixels = 3 * getattr(tower, "temporal_patch_size", 1) * side**2
    batch = module.trainer.datamodule.prompts  # type: ignore[attr-defined]
    total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0.0
    card = min(total, getattr(module.rollout, "card", None) or total)
    at_once = getattr(module.rollout, "prompts_at_once", AT_ONCE)
    copies, copied = module.rollout.planned_copies(backbone, bool(card)) if isinstance(module.rollout, HFRollout) else (False, 0)
    return Load(
        prompt=len(prompt.ids_P),
        completion=module.sampling.max_new_tokens if isinstance(module, LocusModule) else module.validation.max_new_tokens,
        group=module.group_size if isinstance(module, LocusModule) else 1,
        micro_batch=module.micro_batch_size if isinstance(module, LocusModule) else batch,
        decoded=0 if at_once == "auto" and card else min(batch, AT_ONCE if at_once == "auto" else at_once),
        card=card,
        copies=copies,
        copied=copied,
        batch=batch,
        weight_bytes=backbone.dtype.itemsize,
        nf4=bool(backbone.quantize),
        rank=backbone.adapter_rank,
        checkpointing=backbone.gradient_checkpointing,
        packed=backbone.row_tokens(1, 2, 0) == 1,
        vision_trains=backbone.train_vision,
        reference=isinstance(module, LocusModule) and module.objective.kl_coef > 0 and not backbone.adapter_rank,
        optimizer_bytes=2 if "8bit" in optimizer else 0 if optimizer == "SGD" else 8,
        patches=sum(v.numel() for key, v in prompt.vision.items() if key == "pixel_values") // pixels,
        pixels=pixels,
        shards=module.trainer.world_size if isinstance(module.trainer.strategy, FSDP2Strategy) else 1,
        gathered_bytes=2 if module.gathers_16_bit else backbone.dtype.itemsize,
    )
