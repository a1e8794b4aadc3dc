"""Toy checkpoints of the Qwen-VL family."""

from __future__ import annotations

from typing import Any

from locus_lightning.backbones.toy.parts import toy_tokenizer, turns_in_order

_TURNS = turns_in_order("<|vision_start|><|image_pad|><|vision_end|>")
_MARKS = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
"""The sizes of a vision tower of two layers whose features are as wide as :func:`decoder`."""


def _tokenizer() -> Any:
    return toy_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, _MARKS)


def decoder(tokenizer: Any) -> dict[str, Any]:
    """The sizes of a decoder of two layers, 64 wide, with positions of three kinds."""
    token = tokenizer.convert_tokens_to_ids
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        "eos_token_id": [token("<|im_end|>"), token("<|endoftext|>")],
        "pad_token_id": token("<|endoftext|>"),
        "bos_token_id": None,
    }


def _ids(tokenizer: Any) -> dict[str, Any]:
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def _processor(kind: Any, tokenizer: Any) -> Any:
    """Images of 56 x 56 to 112 x 112 pixels."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    bounds = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    return kind(Qwen2VLImageProcessor(size=bounds), tokenizer, Qwen2VLVideoProcessor(size=bounds), chat_template=_TURNS)


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    tokenizer = _tokenizer()
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14}
    config = Qwen2VLConfig(text_config=decoder(tokenizer), vision_config=vision, **_ids(tokenizer))
    return Qwen2VLForConditionalGeneration(config), _processor(Qwen2VLProcessor, tokenizer)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

    tokenizer = _tokenizer()
    vision = {
        **TOWER,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "patch_size": 14,
    }
    config = Qwen2_5_VLConfig(text_config=decoder(tokenizer), vision_config=vision, **_ids(tokenizer))
    return Qwen2_5_VLForConditionalGeneration(config), _processor(Qwen2_5_VLProcessor, tokenizer)


def qwen3_vl_moe() -> tuple[Any, Any]:
    """Qwen3-VL with four experts in every layer, two of them at work for a token."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    return _qwen3(Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, experts)


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL: features of two layers of the tower are added inside the language model."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    return _qwen3(Qwen3VLConfig, Qwen3VLForConditionalGeneration, {})


def qwen3_5() -> tuple[Any, Any]:
    """Qwen3.5: a recurrent layer before one of attention."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    return _qwen3(Qwen3_5Config, Qwen3_5ForConditionalGeneration, _RECURRENT, deepstack=False)


def qwen3_5_moe() -> tuple[Any, Any]:
    """Qwen3.5 with four experts in every layer, two of them and a shared one at work for a token."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    return _qwen3(Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, {**_RECURRENT, **experts}, deepstack=False)


_RECURRENT = {
    "layer_types": ["linear_attention", "full_attention"],
    "partial_rotary_factor": 1.0,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
"""A recurrent layer before one of attention."""


def _qwen3(configuration: Any, architecture: Any, more: dict[str, Any], deepstack: bool = True) -> tuple[Any, Any]:
    from transformers import Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = _tokenizer()
    rope = {"rope_type": "default", "mrope_section": [3, 3, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
    vision = {
        **TOWER,
        "patch_size": 16,
        "num_position_embeddings": 64,
        **({"deepstack_visual_indexes": [0, 1]} if deepstack else {}),
    }
    text = {**decoder(tokenizer), "head_dim": 16, "rope_parameters": rope, **more}
    config = configuration(text_config=text, vision_config=vision, **_ids(tokenizer))
    bounds = {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}
    images = Qwen2VLImageProcessor(size=bounds, patch_size=16)
    videos = Qwen3VLVideoProcessor(size={"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768})
    return architecture(config), Qwen3VLProcessor(images, tokenizer, videos, chat_template=_TURNS)
