"""What toy checkpoints share: a tokenizer trained on a few sentences, a small Llama, chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from locus_lightning.tasks.cue_search import CuePrompt

_TASK = CuePrompt()
_WORDS = (
    "User: Assistant: user assistant system there match crop picture part found look "
    "red green blue yellow orange purple white black grey pink cyan circle square triangle what colour shape how many "
    + " ".join((_TASK.before_image, _TASK.before_cue, _TASK.instruction, _TASK.structure, _TASK.rationale)).format(
        unit="pixels fractions (0 to 1) of the image padded to a square"
    )
)


def toy_tokenizer(
    special: dict[str, str], extra: tuple[str, ...] = (), sentences: tuple[str, ...] = (), named: Mapping[str, str] | None = None
) -> Any:
    """A byte-level BPE tokenizer trained on a few sentences: their words, and the numbers 0-99, are single tokens.

    ``named`` are special tokens that a processor asks the tokenizer for by an attribute, such as ``image_token``.
    """
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
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*special.values(), *extra, *(named or {}).values())])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special, extra_special_tokens=dict(named or {}))


def llama_text(tokenizer: Any, layers: int = 3) -> Any:
    """Configuration of a Llama, 96 wide."""
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
    )


def qwen2_text(tokenizer: Any) -> Any:
    """Configuration of a Qwen2, 48 wide."""
    from transformers import Qwen2Config

    return Qwen2Config(**narrow(tokenizer))


def narrow(tokenizer: Any) -> dict[str, Any]:
    """The sizes of a decoder of two layers, 48 wide, whose heads share keys by twos."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }


TURNS = (
    "{% for m in messages %}{{ 'User: ' if m.role == 'user' else 'Assistant: ' }}"
    "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""As the released LLaVA templates: all images of a turn come before all its text."""


def turns_in_order(image: str) -> str:
    """A template that leaves images, written as ``image``, where they stand."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
        "{{ '" + image + "' if c.type == 'image' else c.text }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
