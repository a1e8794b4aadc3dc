"""What an inference server is given of a Hugging Face model: prompts before their images are expanded, adapters, a folder to load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from locus_lightning.backbones import base_files, loading
from locus_lightning.backbones import checkpoint as checkpoint_files
from locus_lightning.backbones.adapters import noisy_adapters
from locus_lightning.backbones.embeddings import mark_embedding
from locus_lightning.backbones.encoding import pictures_of
from locus_lightning.backbones.facts import Facts
from locus_lightning.errors import ConfigError
from locus_lightning.types import Prompt


class Serving(Facts):
    """Base of :class:`~locus_lightning.backbones.hf.HFBackbone`."""

    model: Any
    hf: Any
    reference: nn.Module | None
    trust_remote_code: bool
    _vision_moves: bool

    def unprocessed(self, prompt: Prompt) -> tuple[list[int], list[Image.Image]]:
        """See :meth:`Backbone.unprocessed`."""
        if not prompt.content:
            raise ConfigError("a prompt of a checkpoint holds no images any more; it cannot be generated from again.")
        ids = self.processor.tokenizer(prompt.text, **self._specials([prompt.text])).input_ids
        return list(ids), [self.prepare_image(image) for image in pictures_of(prompt.content)]

    def shardable(self) -> list[tuple[nn.Module, list[nn.Module], list[nn.Parameter]]]:
        """See :meth:`Backbone.shardable`; a frozen vision side encodes images outside of passes."""
        models = [self.hf] if self.reference is None else [self.hf, self.reference]
        frozen = [] if self._vision_moves else loading.vision_parameters(self.hf)
        return [(model, list(loading.language_model(model).layers), frozen) for model in models]

    def mark_embeddings(self) -> None:
        """See :meth:`Backbone.mark_embeddings`."""
        for module in self.model.modules():
            if isinstance(module, nn.Embedding) or module is self.hf.get_output_embeddings():
                mark_embedding(module.weight)  # type: ignore[arg-type]

    def _whole(self, prefix: str = "") -> dict[str, Tensor] | None:
        """The whole weights that are to be saved, under their names behind ``prefix``; None where the model holds them itself."""
        if self.whole_weights is None:
            return None
        return {name.removeprefix(prefix): value for name, value in self.whole_weights.items() if name.startswith(prefix)}

    def save_adapter(self, folder: Path) -> None:
        """See :meth:`Backbone.save_adapter`."""
        if not self.adapter_rank:
            super().save_adapter(folder)
        self.model.save_pretrained(folder, state_dict=self._whole("model."))
        base_files.readable_by_others(Path(folder))

    @contextmanager
    def noisy_adapters(self, scale: float) -> Iterator[None]:
        """See :meth:`Backbone.noisy_adapters`."""
        with noisy_adapters(self.model, scale):
            yield

    def save_served(self, folder: Path) -> None:
        """See :meth:`Backbone.save_served`."""
        base_files.link_base_files(self.checkpoint, folder)
        bare: Any = type(self)(self.checkpoint, **self.family_settings(), trust_remote_code=self.trust_remote_code)
        source = checkpoint_files.resolve(self.checkpoint)
        bare.processor = loading.load_processor(source, self.trust_remote_code)
        bare.model = loading.skeleton(checkpoint_files.config_of(self.checkpoint, self.trust_remote_code), self.trust_remote_code)
        bare.prepare_processor()
        bare.processor.save_pretrained(folder)
        bare.processor.image_processor.save_pretrained(folder)  # a file of its own, which older versions read
