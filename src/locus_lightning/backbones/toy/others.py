"""Toy checkpoints of InternVL, Idefics3, SmolVLM, Mistral 3 and Gemma 3."""

from __future__ import annotations

from typing import Any

from locus_lightning.backbones.toy.parts import llama_text, narrow, qwen2_text, toy_tokenizer, turns_in_order

_VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def internvl() -> tuple[Any, Any]:
    """InternVL3 as transformers has it: tiles of one size, then an overview; four neighbouring patches make a token."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
    from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = toy_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ("<|im_start|>",), named=named)
    config = InternVLConfig(
        vision_config={**_VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config=qwen2_text(tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    size = {"height": 56, "width": 56}
    images = GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    template = turns_in_order("<IMG_CONTEXT>\\n")
    processor = InternVLProcessor(images, tokenizer, InternVLVideoProcessor(size=size), image_seq_length=4, chat_template=template)
    return InternVLForConditionalGeneration(config), processor


def aya_vision() -> tuple[Any, Any]:
    """Aya Vision: tiles of one size, then an overview; a layer that sees a window before one that sees all."""
    from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration, AyaVisionProcessor, Cohere2Config
    from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor

    marks = (
        "<|im_start|>",
        "<image>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        *(f"TILE_{i + 1}" for i in range(6)),
        "TILE_GLOBAL",
    )
    tokenizer = toy_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<pad>"}, marks)
    text = Cohere2Config(**narrow(tokenizer), head_dim=12, sliding_window=64, layer_types=["sliding_attention", "full_attention"])  # type: ignore[call-arg]
    config = AyaVisionConfig(
        vision_config={**_VISION, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False},
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
    )
    images = GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True, min_patches=1, max_patches=4)
    template = turns_in_order("<image>")
    processor = AyaVisionProcessor(images, tokenizer, patch_size=14, img_size=56, downsample_factor=2, chat_template=template)
    return AyaVisionForConditionalGeneration(config), processor


def _idefics_tokenizer() -> Any:
    tags = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    marks = ("<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", "<video>", *tags)
    return toy_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, marks)


def idefics3() -> tuple[Any, Any]:
    """Idefics3: tiles, then the whole image."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_idefics3 import Idefics3ImageProcessor

    tokenizer = _idefics_tokenizer()
    config = Idefics3Config(
        vision_config={**_VISION, "image_size": 56, "patch_size": 14},
        text_config=llama_text(tokenizer, 2),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
    )
    images = Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=turns_in_order("<image>"))
    return Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    """SmolVLM2."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    tokenizer = _idefics_tokenizer()
    config = SmolVLMConfig(
        vision_config={**_VISION, "image_size": 56, "patch_size": 14},
        text_config=llama_text(tokenizer, 2),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    size, tile = {"longest_edge": 112}, {"longest_edge": 56}
    images = SmolVLMImageProcessor(size=size, max_image_size=tile)
    videos = SmolVLMVideoProcessor(size=size, max_image_size=tile)
    processor = SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4, chat_template=turns_in_order("<image>"))
    return SmolVLMForConditionalGeneration(config), processor


def mistral3() -> tuple[Any, Any]:
    """Mistral 3: images keep their shape; four neighbouring patches make a token, and a line of tokens ends in a break."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralProcessor
    from transformers.models.pixtral.image_processing_pixtral import PixtralImageProcessor

    tokenizer = toy_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<pad>"}, ("<|im_start|>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"))
    text = MistralConfig(**narrow(tokenizer), head_dim=12, sliding_window=None)
    config = Mistral3Config(
        vision_config={**_VISION, "model_type": "pixtral", "head_dim": 12, "image_size": 112, "patch_size": 14},
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    images = PixtralImageProcessor(size={"longest_edge": 112}, patch_size=14)
    template = turns_in_order("[IMG]")
    return Mistral3ForConditionalGeneration(config), PixtralProcessor(images, tokenizer, 14, 2, chat_template=template)


def gemma3() -> tuple[Any, Any]:
    """Gemma 3: tokens of an image see each other in both directions, and every other layer sees a window only."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = toy_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<pad>"}, ("<|im_start|>",), named=named)
    text = {
        **narrow(tokenizer),
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 4096,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config={**_VISION, "image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    images = Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=turns_in_order("<start_of_image>"))
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(
        model.model.multi_modal_projector.mm_input_projection_weight, std=48**-0.5
    )  # zeros as they come: it would be blind
    return model, processor
