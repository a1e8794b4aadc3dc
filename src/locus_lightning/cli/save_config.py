"""The full configuration of a run, beside its results."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback

from locus_lightning.callbacks.run_folder import run_folder
from locus_lightning.files import whole


class SaveConfig(SaveConfigCallback):
    """Saves the full configuration of every run; continuing in a folder adds a file, it overwrites none."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose a free name, then save."""
        folder, number = run_folder(trainer), 1
        if self.already_saved or folder is None:
            return
        while (folder / self.config_filename).exists():
            number += 1
            self.config_filename = f"config-{number}.yaml"
        if trainer.is_global_zero:
            with whole(folder / self.config_filename) as beside:
                self.parser.save(self.config, beside, skip_none=False, overwrite=True, multifile=False)
        self.already_saved = True
