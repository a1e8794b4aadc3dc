"""Toy checkpoints of the LLaVA family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from locus_lightning.backbones.toy.parts import TURNS, llama_text, qwen2_text, toy_tokenizer


def llava(
    side: int = 48, patch: int = 8, tower_layers: int = 1, sentences: tuple[str, ...] = (), text: Callable[[Any], Any] = llama_text
) -> tuple[Any, Any]:
    """LLaVA-1.5; ``text`` makes the language model's configuration for a tokenizer."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    tokenizer = toy_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"}, ("<image>",), sentences)
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=256, num_hidden_layers=tower_layers, num_attention_heads=4, image_size=side, patch_size=patch
    )
    language = text(tokenizer)
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=language.tie_word_embeddings,
    )
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(images, tokenizer, patch, "default", chat_template=TURNS, num_additional_image_tokens=1)
    return LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: an overview, then tiles with one newline token a row."""
    from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
    from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor

    tokenizer = toy_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"}, ("<image>",))
    pinpoints = [[48, 96], [96, 48], [96, 96]]
    vision = CLIPVisionConfig(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=8)
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=llama_text(tokenizer, 2),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        image_seq_length=36,
    )
    images = LlavaNextImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_grid_pinpoints=pinpoints)
    processor = LlavaNextProcessor(images, tokenizer, 8, "default", chat_template=TURNS, num_additional_image_tokens=1)
    return LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor

    tokenizer = toy_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"}, ("<image>", "<video>"))
    pinpoints = [[48, 48], [48, 96], [96, 48], [96, 96]]
    vision = SiglipVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=8
    )
    vision.vision_use_head = False
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=qwen2_text(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
    )
    images = LlavaOnevisionImageProcessor(size={"height": 48, "width": 48}, image_grid_pinpoints=pinpoints)
    videos = LlavaOnevisionVideoProcessor(size={"height": 48, "width": 48})
    processor = LlavaOnevisionProcessor(
        images, tokenizer, videos, num_image_tokens=36, vision_feature_select_strategy="full", chat_template=TURNS
    )
    return LlavaOnevisionForConditionalGeneration(config), processor
