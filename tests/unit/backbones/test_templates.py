"""Chat templates as they are in the wild: one that opens a think block, one that writes the begin-of-sequence token, turn ends, tags that are
special tokens."""

from __future__ import annotations

import pytest
import torch
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.data.synthetic.scenes import SceneCues
from locus_lightning.rewards.format import FormatReward
from locus_lightning.tasks.cue_search import CueSearch
from locus_lightning.tasks.parsing import without_opened
from locus_lightning.training.sft import SupervisedModule
from locus_lightning.types import Generation
from tests.conftest import contents, make_sample, target


@pytest.fixture
def thinking(make_backbone):
    """A model whose template opens the think block, as Qwen3-VL-Thinking's does."""
    backbone = make_backbone("qwen2_vl")
    template = backbone.processor.chat_template
    backbone.processor.chat_template = template.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert backbone.processor.chat_template != template
    return backbone


def test_what_the_template_opened_counts_as_written(thinking):
    sample = make_sample()
    (prompt,) = thinking.encode(contents(thinking, [sample]))
    assert prompt.opened == "<think>\n"
    written = without_opened(target(thinking, sample), prompt.opened)
    assert not written.startswith("<think>")
    frame = thinking.frame(sample.image.size)
    completion = CueSearch().complete(written, sample, frame, prompt.opened)
    assert FormatReward().score(completion, sample) == 1.0
    assert completion.score > 0.8


def test_reinforcement_and_validation_parse_with_the_opened_block(thinking):
    sample = make_sample()
    model = SupervisedModule(thinking)
    (prompt,) = model.encode([sample])
    ids = thinking.tokenize_answer(without_opened(target(thinking, sample), prompt.opened))
    completion = model.complete(Generation(ids, torch.zeros(len(ids)), truncated=False), sample, prompt)
    assert completion.well_formed


def test_supervised_targets_do_not_open_it_again(thinking, monkeypatch):
    import lightning as L

    seen = []
    original = type(thinking).tokenize_answer
    monkeypatch.setattr(type(thinking), "tokenize_answer", lambda self, text: seen.append(text) or original(self, text))
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                        limit_val_batches=0, enable_model_summary=False)  # fmt: skip
    trainer.fit(SupervisedModule(thinking), datamodule=CueDataModule(SceneCues(image_size=96, train_size=4), batch_size=2))
    assert len(seen) == 2
    assert all(text.count("<think>") == 0 and text.count("</think>") == 1 for text in seen)


@pytest.mark.parametrize("family", ["gemma3", "qwen2_vl", "llava"])
def test_a_prompt_has_one_begin_of_sequence(make_backbone, family):
    """Template and tokenizer both write it, as Gemma 3's and Idefics3's do."""
    backbone = make_backbone(family)
    tokenizer = backbone.processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    content = contents(backbone, [make_sample()])[0]
    for template in (backbone.processor.chat_template, "{{ bos_token }}" + backbone.processor.chat_template):
        backbone.processor.chat_template = template
        prompts = backbone.encode_pixels([content, content])
        for prompt in prompts:
            assert (prompt.ids_P == bos).sum() == 1
            assert prompt.ids_P[0] == bos


def test_a_target_ends_as_the_template_ends_a_turn(make_backbone, caplog):
    backbone = make_backbone("gemma3")
    tokenizer = backbone.processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn_end>"]})
    end = tokenizer.convert_tokens_to_ids("<turn_end>")
    backbone.processor.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{{ c.text if c.type == 'text' else '' }}{% endfor %}<turn_end>\n"
        "{% endfor %}{% if add_generation_prompt %}model: {% endif %}"
    )
    backbone._turn_end = None  # found when the model was loaded
    assert backbone.tokenize_answer("x")[-1] == backbone.eos_ids[0]
    assert "ends a turn with '<turn_end>', which is not among the ids that end a completion" in caplog.text
    backbone._turn_end = None
    backbone.hf.generation_config.eos_token_id = [backbone.eos_ids[0], end]
    assert backbone.tokenize_answer("x")[-1] == end


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_tags_survive_decoding_where_they_are_special_tokens(make_backbone, family):
    backbone = make_backbone(family)
    sample = make_sample()
    right = target(backbone, sample)
    backbone.processor.tokenizer.add_tokens(
        [AddedToken(tag, special=True, normalized=False) for tag in ("<think>", "</think>", "<answer>", "</answer>")], special_tokens=True
    )
    ids = backbone.tokenize_answer(right)
    assert backbone.processor.tokenizer.decode(ids, skip_special_tokens=True) != right, "the tags are special"
    assert backbone.decode(ids) == right
