"""Prompts that a loader's workers prepare are those that the main process makes, to the bit."""

from __future__ import annotations

import pickle

import lightning as L
import pytest
import torch

from locus_lightning.data.datamodule import CueDataModule
from locus_lightning.data.prepare import FewTensors, workers_are_forked
from locus_lightning.data.source import CueBatch, CueDataset, CueSource
from locus_lightning.objectives.grpo import GRPO
from locus_lightning.rewards.base import Reward
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.training.grpo import LocusModule
from tests.conftest import contents, make_sample


class Few(CueDataset):
    def __len__(self):
        return 8

    def __getitem__(self, key):
        return make_sample(60 + 10 * key.item, 90, (3, 5, 40, 33), seed=key.item)


class Letters(Reward):
    """Differs within a group, so that there is something to learn."""

    def score(self, completion, sample):
        return len(set(completion.text)) / 30


class Source(CueSource):
    def dataset(self, split, seed):
        return Few()


def test_prepared_prompts_are_those_of_the_main_process_to_the_bit(make_backbone, family, samples):
    backbone = make_backbone(family)
    prepared = backbone.prepare(contents(backbone, samples))
    travelled = pickle.loads(pickle.dumps(FewTensors(prepared)))
    for here, there in zip(backbone.encode_pixels(contents(backbone, samples)), map(backbone._prompt, travelled), strict=True):
        assert here.text == there.text
        assert torch.equal(here.ids_P, there.ids_P)
        assert torch.equal(here.positions_P, there.positions_P)
        assert here.vision.keys() == there.vision.keys()
        assert all(torch.equal(here.vision[key], there.vision[key]) for key in here.vision)
    for here, there in zip(backbone.encode(contents(backbone, samples)), backbone.encode_prepared(travelled), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here.features, there.features, strict=True))


def test_prepared_prompts_travel_as_few_tensors(make_backbone, samples):
    backbone = make_backbone("qwen2_5_vl")
    _, (rows, flat) = FewTensors(backbone.prepare(contents(backbone, samples))).__reduce__()
    assert len(rows) == 3
    assert len(flat) == 2, "one of floats, one of integers"


@pytest.mark.skipif(not workers_are_forked(), reason="workers are spawned here")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_training_on_prepared_prompts_is_the_same_training(make_backbone, family):
    results = []
    for workers in (0, 2):
        module = LocusModule(make_backbone(family), rewards=[Letters()], objective=GRPO(kl_coef=0.0), sampling=SamplingParams(6), group_size=2,
                             optimizer=lambda p: torch.optim.SGD(p, lr=1e-2))  # fmt: skip
        whole, prepared = module.encode, []

        def encode(samples, whole=whole, prepared=prepared):
            prepared.append(isinstance(samples, CueBatch) and samples.prepared is not None)
            return whole(samples)

        module.encode = encode
        L.seed_everything(0, verbose=False)
        trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=2, limit_val_batches=1, num_sanity_val_steps=0, val_check_interval=1,
                            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
        trainer.fit(module, datamodule=CueDataModule(Source(), batch_size=2, val_batch_size=2, num_workers=workers))
        assert prepared
        assert all(prepared) == (workers > 0)
        results.append({name: value.clone() for name, value in module.backbone.state_dict().items()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][n], v) for n, v in make_backbone(family).state_dict().items()), "the weights moved"
