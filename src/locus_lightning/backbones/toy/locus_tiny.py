"""The small model that configs/tiny_pretrain.yaml teaches, before its first QA example.

A LLaVA with a Qwen3 for its language. What is drawn at random here is drawn so that a narrow model finds out what is where within
minutes (our choice, each against the usual start on the same QA examples): places and numbers that lie near one another begin alike, a
query begins as the key of its own kind, words are not drowned by what the first layer adds to them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from locus_lightning.backbones.toy.llava import llava

SIDE, PATCH, WIDTH, HEADS = 96, 12, 96, 4
"""Pixels of an image and of a patch; width of tower and language model."""

_WORDS = (  # "none" and "Map every" are used by no QA example any more: another vocabulary is another initialisation
    "red green blue yellow orange purple white black pink cyan plain striped dotted checked "
    "circle square triangle diamond cross ring left right above below thing circles squares triangles diamonds crosses rings things\n"
    + "".join(
        f"{word}\n"
        for word in ["red", "green", "blue", "yellow", "orange", "purple", "white", "black", "pink", "cyan", "circle", "square", "triangle"]
    )
    + "".join(f"{word}\n" for word in ["diamond", "cross", "ring", "left", "right", "above", "below", "none", "A", "B", "C", "D"]),
    "none none Map every colour. Map every shape. List all objects. Where is the thing? What is at [1, 2, 3, 4]? What is this?\nWhat is the colour of the shape?",
    "How many are there? Is it on the left or right side of the thing? Is it above or below",
    "a one [1, 2, 3, 4]; an orange two [1, 2, 3, 4]; a three",
    "?\n(A) a\n(B) b\n(C) c\n(D) d\nAnswer with the option's letter from the given choices directly.",
)


def locus_tiny() -> tuple[Any, Any]:
    """Model and processor, 0.75 M parameters."""
    model, processor = llava(side=SIDE, patch=PATCH, tower_layers=2, sentences=_WORDS, text=_language)
    with torch.no_grad():
        _begin_places(model.model.vision_tower.embeddings.position_embedding.weight)
        _begin_words(model.get_input_embeddings().weight, processor.tokenizer)
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.weight.normal_(std=WIDTH**-0.5)
            layer.self_attn.q_proj.weight.copy_(layer.self_attn.k_proj.weight)
            layer.self_attn.o_proj.weight.mul_(0.35)
            layer.mlp.down_proj.weight.mul_(0.35)
    return model, processor


def _language(tokenizer: Any) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=4096,
        initializer_range=0.06,
        tie_word_embeddings=True,  # what the head learns of a word by saying it, the question's word knows
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},  # slow enough that a word meets a patch 200 positions away
    )


def _waves(at_N: Tensor, number: int, span: float) -> Tensor:
    """Features (N, number) of unit variance; those of places near one another on a line of length ``span`` are alike."""
    frequencies = math.pi / span * 2 ** torch.linspace(-1, 3.5, number // 2)
    phases = at_N[:, None] * frequencies
    return torch.cat([phases.sin(), phases.cos()], dim=1) * math.sqrt(2)


def _rotation() -> Tensor:
    return nn.init.orthogonal_(torch.empty(WIDTH, WIDTH))


def _begin_places(weight: Tensor) -> None:
    """Positions of the tower's patches, as loud as what is in them."""
    middle = (torch.arange(SIDE // PATCH) + 0.5) * PATCH
    y, x = (axis.flatten() for axis in torch.meshgrid(middle, middle, indexing="ij"))
    weight[1:] = torch.cat([_waves(axis, WIDTH // 2, SIDE) for axis in (x, y)], dim=1) @ _rotation() * 0.3


def _begin_words(weight: Tensor, tokenizer: Any) -> None:
    """Embeddings as loud as image features; those of numbers begin near their neighbours'."""
    features = 32
    numbers = [tokenizer(str(n), add_special_tokens=False).input_ids for n in range(SIDE + 1)]
    waves = _waves(torch.arange(SIDE + 1.0), features, SIDE) @ _rotation()[:features] * weight.std() * math.sqrt(WIDTH / features)
    ids = torch.tensor(numbers)[:, 0]
    weight[ids] = 0.3 * weight[ids] + waves
    weight.mul_(4)
