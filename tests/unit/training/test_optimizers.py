from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from locus_lightning.backbones.embeddings import mark_embedding
from locus_lightning.errors import ConfigError
from locus_lightning.training.optimizers import MuonAdamW


def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 20))
    mark_embedding(made[0].weight)
    return made


def train(network, optimizer, steps, scheduler=None):
    losses = []
    for step in range(steps):
        ids = (torch.arange(32) * (step + 3)) % 20
        loss = nn.functional.cross_entropy(network(ids), (ids * 7) % 20)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
        losses.append(loss.item())
    return losses


def test_matrices_go_to_muon_and_the_rest_to_adamw():
    network = model()
    muon, adamw = MuonAdamW(network.parameters(), lr=1e-3, muon_lr=1e-2).param_groups
    assert [tuple(p.shape) for p in muon["params"]] == [(16, 8), (20, 16)]
    assert network[0].weight in set(adamw["params"])
    assert (muon["lr"], adamw["lr"]) == (1e-2, 1e-3)


def test_it_learns_and_a_schedule_reaches_both_parts():
    network = model()
    optimizer = MuonAdamW(network.parameters(), lr=3e-3, muon_lr=2e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 if step >= 40 else 1.0)
    losses = train(network, optimizer, 60, scheduler)
    assert losses[-1] < losses[0] / 3
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1.5e-3]


def test_a_saved_state_goes_on_bit_for_bit():
    network = model()
    optimizer = MuonAdamW(network.parameters())
    train(network, optimizer, 5)
    other = copy.deepcopy(network)
    mark_embedding(other[0].weight)
    again = MuonAdamW(other.parameters())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(network, optimizer, 5) == train(other, again, 5)


def test_the_backbone_marks_embeddings_and_head(make_backbone):
    backbone = make_backbone("llava")
    groups = MuonAdamW(backbone.parameters()).param_groups
    muon = {id(p) for p in groups[0]["params"]}
    names = {name for name, p in backbone.named_parameters() if id(p) in muon}
    assert names
    assert not any("embed" in name or "lm_head" in name for name in names)


def test_an_old_torch_is_told_so(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"torch 2\.9"):
        MuonAdamW(model().parameters())
