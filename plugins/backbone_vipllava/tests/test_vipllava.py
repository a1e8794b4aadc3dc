"""The check that plugin authors are given, on a random toy of the architecture that is made here."""

import pytest
import torch

from locus_backbone_vipllava import VipLlavaBackbone
from locus_lightning.testing import check_backbone, toy_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ 'User: ' if m.role == 'user' else 'Assistant: ' }}"
    "{% for c in m.content if c.type == 'image' %}<image>{% endfor %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)


@pytest.fixture
def checkpoint(tmp_path):
    """A folder as ``save_pretrained`` writes it: two layers, 48 wide."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaProcessor, VipLlavaConfig, VipLlavaForConditionalGeneration
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    tokenizer = toy_tokenizer({"eos_token": "</s>", "pad_token": "<pad>"}, ("<image>",))
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = LlamaConfig(
        **sizes, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    config = VipLlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(**sizes, image_size=48, patch_size=8),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=[-1, -2],
    )
    torch.manual_seed(0)
    VipLlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    images = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    processor = LlavaProcessor(images, tokenizer, 8, "default", chat_template=TEMPLATE, num_additional_image_tokens=1)
    processor.save_pretrained(tmp_path)
    return str(tmp_path)


def test_it_keeps_the_contract(checkpoint):
    check_backbone(VipLlavaBackbone(checkpoint, dtype="float64"))


def test_auto_finds_it_by_its_model_type(checkpoint):
    from locus_lightning.backbones.auto import AutoBackbone

    backbone = AutoBackbone(checkpoint)
    backbone.check()
    assert isinstance(backbone, VipLlavaBackbone)
