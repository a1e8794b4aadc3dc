"""Toy checkpoints of the GLM-4V family."""

from __future__ import annotations

from typing import Any

from locus_lightning.backbones.toy.parts import toy_tokenizer, turns_in_order
from locus_lightning.backbones.toy.qwen import TOWER, decoder

_TURNS = turns_in_order("<|begin_of_image|><|image|><|end_of_image|>")
_MARKS = ("<|im_start|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|video|>")


def glm4v() -> tuple[Any, Any]:
    """GLM-4.1V."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration, Glm4vProcessor
    from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor
    from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor

    tokenizer = toy_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, _MARKS)
    token = tokenizer.convert_tokens_to_ids
    text = decoder(tokenizer)
    text["rope_parameters"]["partial_rotary_factor"] = 1.0
    vision = {
        **TOWER,
        "patch_size": 14,
        "image_size": 112,
    }
    names = ("image", "video", "image_start", "image_end", "video_start", "video_end")
    marks = ("image", "video", "begin_of_image", "end_of_image", "begin_of_video", "end_of_video")
    ids = {f"{name}_token_id": token(f"<|{mark}|>") for name, mark in zip(names, marks, strict=True)}
    bounds = {"shortest_edge": 2 * 56 * 56, "longest_edge": 2 * 112 * 112}  # of two frames
    config = Glm4vConfig(text_config=text, vision_config=vision, **ids)
    processor = Glm4vProcessor(Glm4vImageProcessor(size=bounds), tokenizer, Glm4vVideoProcessor(size=bounds), chat_template=_TURNS)
    return Glm4vForConditionalGeneration(config), processor
