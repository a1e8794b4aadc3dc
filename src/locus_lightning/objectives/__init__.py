"""Objectives: functions of tensors, and :class:`~locus_lightning.objectives.grpo.GRPO`, which composes them from a YAML."""
