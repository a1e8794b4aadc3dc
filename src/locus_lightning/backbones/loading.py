"""Loading a checkpoint: processor, weights, NF4 and LoRA.

What is quantised and what gets an adapter is decided by where a module stands (the language model), not by a pattern
that happens to match, and is printed.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from torch import nn

from locus_lightning.backbones.adapters import LoRA, add_adapters
from locus_lightning.backbones.checkpoint import config_of
from locus_lightning.backbones.shared_prefix import attention
from locus_lightning.errors import CheckpointError

log = logging.getLogger(__name__)


def load_processor(source: str, trust_remote_code: bool) -> Any:
    """The checkpoint's own processor.

    Raises:
        CheckpointError: processor files or the chat template are missing.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as cause:
        raise CheckpointError(f"the processor of {source!r} cannot be loaded; are its processor files complete? ({cause})") from cause
    if not getattr(processor, "chat_template", None):
        raise CheckpointError(f"the processor of {source!r} has no chat template; add chat_template.jinja to the checkpoint.")
    return processor


def load_model(
    source: str, dtype: torch.dtype, quantize: str | None, lora: LoRA | None, trust_remote_code: bool, device: torch.device | None = None
) -> Any:
    """Weights, quantised and with adapters as asked; straight onto a GPU where ``device`` is one, without a copy in the CPU's memory."""
    from transformers import AutoModelForImageTextToText

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention.register(), "trust_remote_code": trust_remote_code}
    if dtype == torch.float64:
        options["experts_implementation"] = "eager"  # the fused product of experts has no float64
    if quantize:
        options["quantization_config"] = _nf4(source, dtype, trust_remote_code)
        options["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    elif device is not None and device.type != "cpu":
        options["device_map"] = {"": device}
    try:
        model = AutoModelForImageTextToText.from_pretrained(source, **options)
    except torch.cuda.OutOfMemoryError as cause:
        raise CheckpointError(
            f"{source!r} does not fit on this GPU ({cause}); set backbone.quantize: nf4 or choose a smaller model."
        ) from cause
    except OSError as cause:
        raise CheckpointError(f"the weights of {source!r} cannot be loaded: {cause}") from cause
    if quantize:
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - some CPUs' packed layers have no gradient
        _report_quantised(model)
    return add_adapters(model, lora, _language_linears(model)) if lora else model


def language_model(model: Any) -> Any:
    """The part that reads and writes tokens; some families call it ``text_model``."""
    inner = model.base_model
    return inner.language_model if hasattr(inner, "language_model") else inner.text_model


def vision_modules(model: Any) -> list[nn.Module]:
    """The submodules beside the language model: tower, projector."""
    language = language_model(model)
    return [module for module in model.base_model.children() if module is not language]


def vision_parameters(model: Any) -> list[nn.Parameter]:
    """Parameters that are neither the language model's nor the head's."""
    language = {id(p) for p in (*language_model(model).parameters(), *model.get_output_embeddings().parameters())}
    return [p for p in model.parameters() if id(p) not in language]


def unread_parameters(model: Any) -> set[nn.Parameter]:
    """Parameters of the vision tower that no output depends on: its pooling head, and what lies behind the layer whose features are taken.

    They would never get a gradient, which DDP takes for a mistake.
    """
    tower, chosen = getattr(model.base_model, "vision_tower", None), getattr(model.config, "vision_feature_layer", None)
    if tower is None:
        return set()
    named = dict(tower.named_parameters())
    depths = {name: int(match[1]) for name in named if (match := re.search(r"\blayers\.(\d+)\.", name))}
    layers = max(depths.values(), default=-1) + 1
    taken = [chosen] if isinstance(chosen, int) else list(chosen or [])
    read = max((layers + 1 + layer if layer < 0 else layer for layer in taken), default=layers)
    unread = {name for name, depth in depths.items() if depth >= read}
    unread |= {name for name in named if re.search(r"(^|\.)head\.", name) or (taken and "post_layernorm" in name)}
    return {named[name] for name in unread}


def _language_linears(model: Any) -> list[str]:
    inside = {id(module) for module in language_model(model).modules()}
    return [name for name, m in model.named_modules() if id(m) in inside and isinstance(m, nn.Linear)]


def skeleton(config: Any, trust_remote_code: bool = False) -> Any:
    """A config's model on the meta device: names and shapes, no memory, nothing quantised."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=trust_remote_code)


def _nf4(source: str, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """NF4 for the language model's linears only: every other linear is skipped by its full name."""
    from transformers import BitsAndBytesConfig

    shape = skeleton(config_of(source, trust_remote_code), trust_remote_code)
    keep = set(_language_linears(shape))
    skip = [name for name, module in shape.named_modules() if isinstance(module, nn.Linear) and name not in keep]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def quantised_linears(model: Any) -> list[str]:
    """Names of the layers that hold 4-bit weights; peft's wrappers of the same name hold none."""
    return [name for name, m in model.named_modules() if type(m).__name__ == "Linear4bit" and type(m).__module__.startswith("bitsandbytes")]


def _report_quantised(model: Any) -> None:
    names = quantised_linears(model)
    inside = set(_language_linears(model))
    outside = [name for name in names if name not in inside]
    if not names or outside:
        raise CheckpointError(
            f"NF4 reached {len(names)} layers, {len(outside)} outside the language model ({outside[:3]}); please report this checkpoint."
        )
    log.info("NF4: %d linear layers of the language model; vision side, embeddings and head stay as loaded.", len(names))
