"""Rewards: how good is a completion? One file a reward, all built on :class:`~locus_lightning.rewards.base.Reward`."""
