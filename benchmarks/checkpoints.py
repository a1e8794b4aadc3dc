"""Checkpoints for benchmarks: real architectures with random weights, of a chosen size, with tokenizer and processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from locus_lightning.backbones.toy import save_toy_checkpoint
from locus_lightning.backbones.toy.llava import llava, llava_onevision
from locus_lightning.backbones.toy.qwen import qwen2_5_vl

QWEN2_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
"""The language model of Qwen2.5-VL-7B and LLaVA-OneVision-7B, without its vocabulary."""
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16, "image_size": 384}
"""The tower of LLaVA-OneVision-7B."""


def qwen_tiny(folder: Path) -> Path:
    """A Qwen2.5-VL of about 7 M parameters that sees pictures up to 672 px."""
    model, processor = qwen2_5_vl()
    config = model.config
    config.text_config.update(
        {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
    )
    config.text_config.rope_parameters = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config.vision_config.update({"depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 256})
    config.vision_config.update({"fullatt_block_indexes": [3], "window_size": 112})
    return _save(type(model), config, _resized(processor, 672), folder)


def llava_tiny(folder: Path) -> Path:
    """A LLaVA-1.5 of about 7 M parameters: 256 tokens a picture (224 px, patches of 14)."""
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    model, processor = llava()
    config = model.config
    config.text_config.update(
        {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8}
    )
    config.text_config.head_dim = 32
    config.vision_config.update({"image_size": 224, "patch_size": 14, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4})
    processor.image_processor = CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    processor.patch_size = 14
    return _save(type(model), config, processor, folder)


def qwen_7b(folder: Path) -> Path:
    """Qwen2.5-VL-7B's shape."""
    kind, config, processor = qwen_7b_shape()
    return _save(kind, config, _resized(processor, 1344), folder, torch.bfloat16)


def qwen_7b_shape() -> tuple[Any, Any, Any]:
    """(model class, config, processor) of Qwen2.5-VL-7B's shape; no weights."""
    model, processor = qwen2_5_vl()
    config = model.config
    config.text_config.update({**QWEN2_7B, "vocab_size": 152064})
    config.text_config.rope_parameters = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    config.vision_config.update({"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584})
    config.vision_config.update({"fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112})
    return type(model), config, processor


def llava_7b(folder: Path) -> Path:
    """LLaVA-1.5-7B's shape: 576 tokens a picture, full attention heads in the cache."""
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    model, processor = llava()
    config = model.config
    config.text_config.update(
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
        }
    )
    config.text_config.head_dim = 128
    config.text_config.initializer_range = 0.02
    config.vision_config.update(
        {
            "image_size": 336,
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        }
    )
    processor.image_processor = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor.patch_size = 14
    return _save(type(model), config, processor, folder, torch.bfloat16)


def onevision_7b(folder: Path) -> Path:
    """LLaVA-OneVision-7B's shape: up to four tiles of 384 px and an overview, 729 tokens each."""
    model, processor = llava_onevision()
    config = model.config
    config.text_config.update({**QWEN2_7B, "vocab_size": 152000})
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
    config.vision_config.update({**SIGLIP, "patch_size": 14})
    config.image_grid_pinpoints = [[384, 384], [384, 768], [768, 384], [768, 768]]
    processor.image_processor.size = {"height": 384, "width": 384}
    processor.image_processor.image_grid_pinpoints = config.image_grid_pinpoints
    processor.num_image_tokens = 729
    return _save(type(model), config, processor, folder, torch.bfloat16)


def onevision_tiny(folder: Path) -> Path:
    """The toy LLaVA-OneVision."""
    return save_toy_checkpoint("llava_onevision", folder)


def _resized(processor: Any, side: int) -> Any:
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": side * side}
    return processor


def every_layer_full(config: Any) -> Any:
    """The config with full attention in every layer of its language model."""
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
    return config


def _save(kind: Any, config: Any, processor: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    config = every_layer_full(config)
    device = "cuda" if dtype != torch.float32 and torch.cuda.is_available() else "cpu"
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        torch.manual_seed(0)
        model = kind(config)
    torch.set_default_dtype(previous)
    model.config.architectures = [kind.__name__]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
