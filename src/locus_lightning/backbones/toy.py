"""Checkpoints of real architectures at toy size, made on the spot: nothing is downloaded.

``toy:llava`` (also ``toy:llava_onevision``, ``toy:qwen2_5_vl``) may stand wherever a checkpoint is named. The folder
it becomes holds ordinary config, weights (random), tokenizer and processor files, and is loaded like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from locus_lightning.backbones.base import CuePrompt
from locus_lightning.errors import CheckpointError

PREFIX = "toy:"
_TASK = CuePrompt()
_WORDS = (
    "User: Assistant: user assistant system there match crop picture part found look "
    "red green blue yellow orange purple white black grey pink cyan circle square triangle what colour shape how many "
    + " ".join((_TASK.before_image, _TASK.before_cue, _TASK.instruction, _TASK.structure, _TASK.rationale)).format(
        unit="pixels fractions (0 to 1) of the image padded to a square"
    )
)


def save_toy_checkpoint(family: str, folder: Path) -> Path:
    """Write a toy checkpoint of ``family`` (``llava``, ``llava_onevision``, ``qwen2_5_vl``) to ``folder``.

    The weights are drawn from torch's current generator: seed it for the same model again.

    Raises:
        CheckpointError: no such toy family.
    """
    if family not in _FAMILIES:
        raise CheckpointError(f"there is no toy checkpoint {PREFIX}{family}; choose from {', '.join(PREFIX + f for f in _FAMILIES)}.")
    from safetensors.torch import save_model
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a toy is written and read in a blink
    model, processor = _FAMILIES[family]()
    # not model.save_pretrained: in a distributed run it writes on the first process only
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_model(model, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
    processor.save_pretrained(folder)
    return folder


def families() -> tuple[str, ...]:
    """Names of the toy families."""
    return tuple(_FAMILIES)


def model_type(family: str) -> str:
    """The transformers ``model_type`` of a toy family."""
    return "llava" if family == "locus_tiny" else family


def toy_tokenizer(special: dict[str, str], extra: tuple[str, ...] = (), sentences: tuple[str, ...] = ()) -> Any:
    """A byte-level BPE tokenizer trained on a few sentences: their words, and the numbers 0-99, are single tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r"\d+| ?\p{L}+|[^\p{L}\d]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    numbers = " ".join(str(n) for n in range(100))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([_WORDS, numbers, "[1, 2, 3, 4]", "[0.12, 0.34, 0.56, 0.78]", *sentences], trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>", "<answer>", "</answer>")])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*special.values(), *extra)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def _llama_text(tokenizer: Any, layers: int = 3, tied: bool = False) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.06,  # a narrow model learns sooner from wider weights than the usual 0.02
        tie_word_embeddings=tied,
    )


_TURNS = (
    "{% for m in messages %}{{ 'User: ' if m.role == 'user' else 'Assistant: ' }}"
    "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""As the released LLaVA templates: all images of a turn come before all its text."""


def _llava(
    side: int = 48, patch: int = 8, tower_layers: int = 1, layers: int = 3, sentences: tuple[str, ...] = (), tied: bool = False
) -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    tokenizer = toy_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"}, ("<image>",), sentences)
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=256, num_hidden_layers=tower_layers, num_attention_heads=4, image_size=side, patch_size=patch
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_llama_text(tokenizer, layers, tied),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,
    )
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(images, tokenizer, patch, "default", chat_template=_TURNS, num_additional_image_tokens=1)
    return LlavaForConditionalGeneration(config), processor


_LESSON_WORDS = (
    "red green blue yellow orange purple white black pink cyan plain striped dotted checked "
    "circle square triangle diamond cross ring left right above below thing circles squares triangles diamonds crosses rings things\n"
    + "".join(
        f"{word}\n"
        for word in ["red", "green", "blue", "yellow", "orange", "purple", "white", "black", "pink", "cyan", "circle", "square", "triangle"]
    )
    + "".join(f"{word}\n" for word in ["diamond", "cross", "ring", "left", "right", "above", "below", "A", "B", "C", "D"]),
    "List all objects. Where is the thing? What is at [1, 2, 3, 4]? What is this?\nWhat is the colour of the shape?",
    "How many are there? Is it on the left or right side of the thing? Is it above or below",
    "a one [1, 2, 3, 4]; an orange two [1, 2, 3, 4]; a three",
    "?\n(A) a\n(B) b\n(C) c\n(D) d\nAnswer with the option's letter from the given choices directly.",
)


def _locus_tiny() -> tuple[Any, Any]:
    return _llava(side=96, patch=12, tower_layers=2, layers=4, sentences=_LESSON_WORDS, tied=True)


def _llava_onevision() -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor

    tokenizer = toy_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"}, ("<image>", "<video>"))
    pinpoints = [[48, 48], [48, 96], [96, 48], [96, 96]]
    vision = SiglipVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=8
    )
    vision.vision_use_head = False
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
    )
    images = LlavaOnevisionImageProcessor(size={"height": 48, "width": 48}, image_grid_pinpoints=pinpoints)
    videos = LlavaOnevisionVideoProcessor(size={"height": 48, "width": 48})
    processor = LlavaOnevisionProcessor(
        images, tokenizer, videos, num_image_tokens=36, vision_feature_select_strategy="full", chat_template=_TURNS
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


_QWEN_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if c.type == 'image' else c.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _qwen2_5_vl() -> tuple[Any, Any]:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    marks = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = toy_tokenizer({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, marks)
    token = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
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
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "patch_size": 14,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    bounds = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    images = Qwen2VLImageProcessor(size=bounds)
    processor = Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(size=bounds), chat_template=_QWEN_TURNS)
    return Qwen2_5_VLForConditionalGeneration(config), processor


_FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "locus_tiny": _locus_tiny,
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen2_5_vl,
}
