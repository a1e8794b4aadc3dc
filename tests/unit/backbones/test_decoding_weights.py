"""What decoding multiplies with: copies of 4-bit weights are the same numbers, layers that read the same input share products, and nothing of
it is left behind."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from locus_lightning.backbones import decoding_weights
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.errors import ConfigError
from locus_lightning.rollout import hf as rollout
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.hf import HFRollout
from tests.conftest import contents
from tests.unit.backbones.rows import SIX, rollouts
from tests.unit.backbones.test_adapters import moved

ADAPTERS = {
    "plain": LoRA(rank=4),
    "of several ranks and scales": LoRA(rank=4, alpha=6, rank_pattern={"q_proj": 8}, alpha_pattern={"up_proj": 1}),
    "on some layers": LoRA(rank=4, targets=["v_proj", "down_proj"]),
    "dora": LoRA(rank=4, dora=True),
}


class Products(TorchDispatchMode):
    """Counts matrix products with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_) or "gemm_4bit" in str(func)
        return func(*args, **(kwargs or {}))


def weights(backbone):
    return {name: value.clone() for name, value in backbone.state_dict().items()}


def answers(backbone, samples):
    return backbone.encode(contents(backbone, samples)), [[backbone.tokenize_answer("[1, 2, 3, 4]")] for _ in samples]


@pytest.mark.parametrize("kind", list(ADAPTERS))
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])  # with and without biases
@torch.no_grad()
def test_copies_of_4_bit_weights_are_the_numbers_that_are_trained_with(make_backbone, samples, family, kind):
    backbone = moved(make_backbone(family, quantize="nf4", lora=ADAPTERS[kind]))
    before, (prompts, completions) = weights(backbone), answers(backbone, samples)
    expected, _ = backbone.logps(prompts, completions)
    without, _ = backbone.logps(prompts, completions, reference=True)
    assert not torch.allclose(expected, without, atol=1e-2)
    with backbone.sampling(merge_adapters=False, dequantize=True):
        left = [module for module in backbone.hf.get_decoder().modules() if hasattr(module, "quant_state")]
        assert bool(left) is (kind == "dora"), "every layer is a copy, but for those under adapters of another kind"
        copies, _ = backbone.logps(prompts, completions)
    assert torch.allclose(copies, expected, atol=1e-4)  # sums in another order
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], value) for name, value in after.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_a_copy_gives_the_product_of_the_4_bit_layer_to_the_bit(make_backbone, dtype):
    backbone = make_backbone("qwen2_5_vl", quantize="nf4", lora=LoRA(rank=4), dtype=dtype)
    for name in ("q_proj", "o_proj", "down_proj"):
        layer = next(m for path, m in backbone.hf.named_modules() if hasattr(m, "quant_state") and name in path)
        x = torch.randn(3, layer.in_features).to(backbone.dtype)
        copy = decoding_weights._Copies([decoding_weights._Place(layer, name, layer)], decoding_weights._plain_weight, backbone.dtype)
        assert torch.equal(copy.product(x), layer(x))


@torch.no_grad()
def test_merged_adapters_leave_no_layer_in_4_bits(make_backbone, samples):
    backbone = moved(make_backbone("qwen2_5_vl", quantize="nf4", lora=ADAPTERS["on some layers"]))
    expected, _ = backbone.logps(*answers(backbone, samples))
    with backbone.sampling(merge_adapters=True):
        assert not any(hasattr(module, "quant_state") for module in backbone.modules())
        assert torch.allclose(backbone.logps(*answers(backbone, samples))[0], expected, atol=1e-4)
    assert any(hasattr(module, "quant_state") for module in backbone.modules())


def test_what_is_sampled_from_copies_is_what_is_scored(make_backbone, samples):
    backbone = moved(make_backbone("qwen2_5_vl", quantize="nf4", lora=LoRA(rank=4)))
    prompts, groups, completions = rollouts(backbone, samples, sampling=SIX, dequantize=True)
    logps, _ = backbone.logps(prompts, completions, temperature=0.8)
    for b, group in enumerate(groups):
        for g, made in enumerate(group):
            assert torch.allclose(logps[b, g, : len(made.ids_T)], made.logps_T, atol=1e-4)


@pytest.mark.parametrize("dequantize", [True, False])
def test_adapters_act_under_autocast(make_backbone, samples, dequantize):
    backbone = moved(make_backbone("qwen2_5_vl", quantize="nf4", lora=LoRA(rank=4)))
    with torch.autocast("cpu", torch.bfloat16):
        prompts, groups, completions = rollouts(backbone, samples, sampling=SIX, dequantize=dequantize)
        logps, _ = backbone.logps(prompts, completions, temperature=0.8)
    logps.sum().backward()
    for b, group in enumerate(groups):
        for g, made in enumerate(group):
            assert torch.allclose(logps[b, g, : len(made.ids_T)], made.logps_T, atol=0.2)


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_the_bytes_of_copies_are_those_that_they_take(make_backbone, kind):
    backbone = make_backbone("qwen2_5_vl", quantize="nf4", lora=ADAPTERS[kind], dtype="bfloat16")
    for settings, stated in (({"dequantize": True}, backbone.dequantised_bytes()), ({"merge_adapters": True}, backbone.merged_bytes())):
        with backbone.sampling(**{"merge_adapters": False, **settings}):
            products = [part.once.compute for part in backbone.modules() if isinstance(part, decoding_weights._Part)]
            held = {id(tensor): tensor for product in products for tensor in tensors_of(product)}
        assert sum(tensor.nbytes for tensor in held.values() if tensor.ndim == 2) == stated
        assert (stated == 0) is (kind == "dora" and "dequantize" in settings)


def tensors_of(held):
    """The tensors that a product holds: of its closure, and of the objects in it."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, (list, tuple)):
        for item in held:
            yield from tensors_of(item)
    elif isinstance(held, (decoding_weights._Copies, decoding_weights._LowRank)):
        yield from (value for value in vars(held).values() if isinstance(value, torch.Tensor))
    elif callable(held):
        yield from tensors_of(getattr(held, "__self__", None))
        for cell in getattr(held, "__closure__", None) or ():
            yield from tensors_of(cell.cell_contents)


def test_where_nothing_is_copied_copies_take_nothing(make_backbone):
    assert make_backbone("qwen2_5_vl", lora=LoRA(rank=4)).dequantised_bytes() == 0
    assert make_backbone("qwen2_5_vl").merged_bytes() == 0


@pytest.mark.parametrize(
    ("settings", "products"),
    # base products, and two of the adapters for every base product or for every layer
    [({"merge_adapters": False}, 7 + 4 + 7), ({"merge_adapters": False, "dequantize": True}, 4 + 4 + 4), ({"merge_adapters": True}, 4)],
)
@torch.no_grad()
def test_layers_that_read_the_same_input_share_products_and_hold_on_to_none(make_backbone, samples, settings, products):
    backbone = moved(make_backbone("qwen2_5_vl", quantize="nf4", lora=LoRA(rank=4)))
    layers = backbone.hf.config.get_text_config().num_hidden_layers
    ids_1P = torch.arange(10, 30)[None]
    with backbone.sampling(**settings), Products() as counted:
        backbone.hidden(ids_1P, torch.ones_like(ids_1P), torch.arange(20)[None])
        shared = [x.once if isinstance(x, decoding_weights._Part) else x.low for x in backbone.modules()
                  if isinstance(x, (decoding_weights._Part, decoding_weights._FusedLinear))]  # fmt: skip
    assert counted.count == layers * products
    assert len(shared) == 7 * layers
    assert all(once.input is None and once.product is None for once in shared)


def test_layers_with_and_without_bias_share_a_product():
    layer = nn.Module()
    layer.q_proj, layer.k_proj, layer.v_proj = nn.Linear(6, 4), nn.Linear(6, 2, bias=False), nn.Linear(6, 3)
    places = [decoding_weights._Place(layer, name, getattr(layer, name)) for name in ("q_proj", "k_proj", "v_proj")]
    x = torch.randn(2, 5, 6)
    copies = decoding_weights._Copies(places, lambda linear: linear.weight, torch.float32)
    expected = torch.cat([getattr(layer, name)(x) for name in ("q_proj", "k_proj", "v_proj")], -1)
    assert torch.allclose(copies.product(x), expected, atol=1e-6)


# ---- when copies are made --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"dequantize": True}, {"merge_adapters": True}])
def test_copies_that_do_not_fit_are_dropped_and_decoding_goes_on(make_backbone, samples, monkeypatch, caplog, settings):
    backbone = moved(make_backbone("qwen2_5_vl", quantize="nf4", lora=LoRA(rank=4)))
    prompts, seen, whole = backbone.encode(contents(backbone, samples)), [], HFRollout._decode

    def decode(self, backbone, some, n, sampling):
        copies = not any(hasattr(module, "quant_state") for module in backbone.modules())
        seen.append((copies, len(some)))
        if copies:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return whole(self, backbone, some, n, sampling)

    monkeypatch.setattr(HFRollout, "_decode", decode)
    engine = HFRollout(**settings)
    with caplog.at_level(logging.WARNING):
        groups = engine.generate(backbone, prompts, 2, SIX)
        engine.generate(backbone, prompts, 2, SIX)
    assert [len(group) for group in groups] == [2] * len(prompts)
    assert seen == [(True, len(prompts)), (False, len(prompts)), (False, len(prompts))]
    assert [record.message for record in caplog.records] == ["the GPU's memory is full: from here on decoding makes no copies of weights."]


@pytest.mark.parametrize(
    ("prompts", "at_once", "beside_copies", "expected"),
    [(8, 8, 8, True), (8, 8, 4, False), (8, 6, 4, True), (8, 6, 3, False), (128, 64, 0, False), (1, 30, 1, True)],
)
def test_copies_are_made_where_they_cost_no_round(prompts, at_once, beside_copies, expected):
    assert rollout.takes_no_more_rounds(prompts, at_once, beside_copies) is expected


@pytest.mark.parametrize(
    ("free", "settings", "prompts", "expected"),
    [
        (100, {}, 8, "dequantized"),  # 70 of 100 are used: 35 prompts of 2, or, beside copies of 50, 17
        (100, {}, 20, None),  # one round against two
        (50, {}, 1, None),  # the copies do not fit
        (100, {"prompts_at_once": 4}, 20, "dequantized"),
        (60, {"prompts_at_once": 4}, 20, None),  # 3 beside the copies: seven rounds against five
        (100, {"dequantize": False}, 8, None),
        (60, {"dequantize": True}, 8, "dequantized"),
        (100, {"merge_adapters": True}, 8, "merged"),
        (110, {"merge_adapters": "auto"}, 8, "merged"),
        (85, {"merge_adapters": "auto"}, 8, "dequantized"),  # merged copies take 80
        (60, {"merge_adapters": "auto"}, 8, None),
        (85, {"merge_adapters": "auto", "dequantize": False}, 8, None),
        (110, {"merge_adapters": "auto", "dequantize": True}, 8, "dequantized"),  # what is asked for is done
    ],
)
def test_copies_are_weighed_against_the_free_memory_of_the_card(monkeypatch, free, settings, prompts, expected):
    for name, value in {
        "mem_get_info": (free, 200),
        "memory_reserved": 0,
        "memory_allocated": 0,
        "get_per_process_memory_fraction": 1.0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    on_card = SimpleNamespace(ids_P=SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(rollout, "len", lambda x: 5 if isinstance(x, SimpleNamespace) else len(x), raising=False)
    backbone = SimpleNamespace(  # bytes of a prompt, of a pass, of copies
        decoding_bytes=lambda *sizes: 2, prefill_bytes=lambda tokens: 0, shares_keys=True, dequantised_bytes=lambda: 50, merged_bytes=lambda: 80,
    )  # fmt: skip
    engine, asked = HFRollout(**settings), (backbone, [on_card] * prompts, 4, SamplingParams(8))
    assert engine.copies(*asked) == expected
    if True not in settings.values():
        nothing = SimpleNamespace(**{**vars(backbone), "dequantised_bytes": lambda: 0, "merged_bytes": lambda: 0})
        assert engine.copies(nothing, *asked[1:]) is None, "there is nothing to copy"
    if expected and True not in settings.values():
        engine.card = 45.0
        assert engine.copies(*asked) is None, "the card that is planned for is smaller than this one"


def test_on_a_cpu_copies_are_made_when_asked_for(make_backbone, samples):
    backbone = make_backbone("qwen2_5_vl", quantize="nf4", lora=LoRA(rank=4))
    prompts = backbone.encode(contents(backbone, samples))
    made = [HFRollout(dequantize=wanted).copies(backbone, prompts, 2, SIX) for wanted in ("auto", True, False)]
    assert made == [None, "dequantized", None]
    assert HFRollout(merge_adapters="auto").copies(backbone, prompts, 2, SIX) is None
    groups = HFRollout(merge_adapters="auto").generate(backbone, prompts, 2, SIX)
    assert [len(group) for group in groups] == [2] * len(prompts)


def test_copies_and_merged_adapters_together_are_refused():
    with pytest.raises(ConfigError, match=r"merge_adapters and rollout\.dequantize are both true.*leave one out"):
        HFRollout(merge_adapters=True, dequantize=True)
