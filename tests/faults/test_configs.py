"""Settings that cannot work are one short sentence that names the key, before weights load."""

from __future__ import annotations

import pytest

from tests.faults.conftest import RUN

WRONG = {
    "--model.optimizer.betas=[1e30,0.9]": "model.optimizer cannot be made: ValueError: Invalid beta parameter at index 0",
    "--model.optimizer.betas=[.nan,0.9]": "model.optimizer.betas: nan is given where float is expected",
    "--model.optimizer.lr=null": "model.optimizer.lr: None is given where float is expected",
    "--model.optimizer.lr=high": "model.optimizer.lr: high is given where float is expected",
    "--model.optimizer.lr=-1": "Invalid learning rate: -1.0",
    "--model.optimizer.weight_decay=-1": "Invalid weight_decay value: -1.0",
    "--model.optimizer=torch.optim.Nope": "model.optimizer: module 'torch.optim' has no attribute 'Nope'",
    "--trainer.accumulate_grad_batches=null": "trainer.accumulate_grad_batches: None is given where int is expected",
    "--trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches is 0; it is at least 1",
    "--model.micro_batch_size=null": "model.micro_batch_size is None; it is a whole number from 1 to 10,000",
    "--model.num_iterations=1e18": "model.num_iterations: 1e18 is given where int is expected",
    "--model.num_iterations=1000000000000000000": "model.num_iterations is 1000000000000000000; it is a whole number from 1 to 10,000",
    "--model.group_size=1": "model.group_size is 1",
    "--trainer.devices=": "the trainer refuses its settings: `devices`",
    "--trainer=-1": "trainer: Unable to load config '-1'",
    "--checkpoints=true": "checkpoints: Unable to load config 'true'",
    "--model.rewards={}": "model.rewards: {} is given where list is expected",
    "--model.objective=GRPOO": "model.objective: there is no class or value 'GRPOO'",
    "--data.source=Nope": "data.source: there is no class or value 'Nope'",
    "--data.batch_size=two": "data.batch_size: two is given where int is expected",
    "--model.sampling.max_new_tokens=null": "model.sampling.max_new_tokens: None is given where int is expected",
    "--model.objective.kl_coef=.nan": "model.objective.kl_coef is nan; give a finite number",
    "--model.schedule=poly": "model.schedule: poly is given where one of",
    "--trainer.gradient_clip_val=-1": "trainer.gradient_clip_val is -1",
    "--trainer.strategy=nope": "invalid strategy name",
    "--trainer.accelerator=nope": "invalid accelerator name",
    "--trainer.max_steps=-5": "the trainer refuses its settings",
    "--seed_everything=-3": "seed_everything is -3",
    "--ckpt_path=/": "ckpt_path / is a folder",
    "--ckpt_path=last": "has checkpoints/last.ckpt; start without ckpt_path, or use auto",
    "--trainer.logger.init_args.save_dir=/proc/nowhere": "cannot be written to",
    "--model.reward_timeout=0": "model.reward_timeout 0.0 (seconds above 0, or null)",
    "--model.max_failed_groups=3": "model.max_failed_groups is 3.0 (a share between 0 and 1)",
    "--model.max_skipped_steps=0": "model.max_skipped_steps is 0; it is at least 1",
    "--data.source.init_args.objects=null": "SceneCues cannot be made of its settings (TypeError",
    "--model.foo=1": "Option 'foo' is not accepted",
}


@pytest.mark.parametrize(("option", "message"), WRONG.items(), ids=lambda v: v if v.startswith("--") else "")
def test_a_setting_that_cannot_work_is_one_short_sentence(locus, monkeypatch, option, message):
    def never(self):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("locus_lightning.backbones.hf.HFBackbone.load", never)
    status, _, err = locus("fit", *RUN, option)
    assert status == 2, err
    said = err.strip().splitlines()[-1]
    assert message in said
    assert len(said) < 330, "the sentence goes on and on"
    assert "Traceback" not in err
    assert "<class" not in said
