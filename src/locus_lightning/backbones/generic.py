"""Any ``AutoModelForImageTextToText`` whose frame the user states."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from locus_lightning.backbones.convention import Convention
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.boxes import BoxFrame
from locus_lightning.errors import CheckpointError, ConfigError
from locus_lightning.types import Prompt, Size

Frame = Literal["thousandths", "fractions", "padded_fractions", "original_pixels"]

_CLOSE = 1e-2
"""Largest difference of log-probabilities, in nats, between the model's own forward pass and ours."""


class GenericBackbone(HFBackbone):
    """A model of no family that is known here: its frame is what you say it is, and its images are taken as its processor makes them.

    When the model is loaded, its own forward pass on a prompt with two images is compared with the one that training uses; a model for
    which they differ is refused rather than trained wrongly.

    Args:
        frame: how the model writes boxes: ``thousandths`` (0 to 1000) or ``fractions`` (0 to 1) of the image, ``padded_fractions`` of the
            image centred on a square, or ``original_pixels``. Look into the model's card; where it says nothing, take ``thousandths``.
        decimals: digits after the point of fractions.
        y_first: whether the model writes y1, x1, y2, x2, as PaliGemma and Gemini do.
        images_first: the chat template puts all images before all text; true writes their placeholders where the images stand.
        kwargs: see :class:`HFBackbone`.
    """

    convention = Convention("as you state", "as you state", False, "none")

    def __init__(
        self, checkpoint: str, frame: Frame, decimals: int = 3, images_first: bool = False, y_first: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(checkpoint, **kwargs)
        if frame not in get_args(Frame):
            raise ConfigError(f"GenericBackbone.frame is {frame!r}; give one of {', '.join(get_args(Frame))}.")
        self.stated, self.decimals, self.images_in_text, self.y_first = frame, decimals, images_first, y_first

    def load(self) -> None:
        """See :meth:`Backbone.load`.

        Raises:
            CheckpointError: the model cannot be driven this way.
        """
        if self.loaded:
            return
        super().load()
        try:
            difference = max(self._difference(), self._packed_difference())
        except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError) as cause:
            raise CheckpointError(
                f"backbone.checkpoint {self.checkpoint!r}: GenericBackbone cannot drive a {self.hf.config.model_type!r} model "
                f"({type(cause).__name__}: {' '.join(str(cause).split())[:200]}); it needs a backbone plugin of its own."
            ) from cause
        if difference > (_CLOSE if self.dtype.itemsize >= 4 else 30 * _CLOSE):
            raise CheckpointError(
                f"backbone.checkpoint {self.checkpoint!r}: GenericBackbone's forward pass differs from the {self.hf.config.model_type!r} "
                f"model's own by {difference:.2g} nats; it needs a backbone plugin of its own."
            )

    def frame(self, size: Size) -> BoxFrame:
        """The frame that the user stated."""
        return replace(self._stated_frame(size), y_first=self.y_first)

    def _stated_frame(self, size: Size) -> BoxFrame:
        if self.stated == "thousandths":
            return BoxFrame.thousandths(size)
        if self.stated == "original_pixels":
            return BoxFrame.stretched(size, size)
        if self.stated == "fractions":
            return BoxFrame.fractions(size, self.decimals)
        return BoxFrame.padded_fractions(size, self.decimals)

    def vision_features(self, prompts: Sequence[Prompt], *, reference: bool = False) -> list[tuple[Tensor, ...]]:
        """Projected features of every prompt's images, as one (tokens, D) tensor a prompt: how images become tiles is not known."""
        model = self._model(reference).base_model
        parameters = inspect.signature(model.get_image_features).parameters
        features: list[tuple[Tensor, ...]] = []
        for prompt in prompts:
            inputs = {key: value for key, value in prompt.vision.items() if key in parameters}
            out = model.get_image_features(**inputs, return_dict=True).pooler_output
            self.joins_features = isinstance(out, Tensor) and out.dim() == 3
            parts = out if isinstance(out, (list, tuple)) else [out]
            features.append((torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]),))
        return features

    def positions(self, ids_P: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The model's own multimodal positions, where it has any."""
        own = getattr(self.hf.base_model, "get_rope_index", None)
        if own is None:
            return super().positions(ids_P, inputs)
        parameters = inspect.signature(own).parameters
        rest = {key: value for key, value in inputs.items() if key in parameters and key != "input_ids"}
        return own(ids_P[None], **{**rest, "attention_mask": torch.ones_like(ids_P[None])})[0][:, 0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _difference(self) -> float:
        """The difference of the next token's log-probabilities after a prompt with two images of noise, the model's own pass against ours."""
        pixels = np.random.default_rng(0).integers(0, 255, (2, 96, 64, 3), dtype=np.uint8)
        content = ("1: ", Image.fromarray(pixels[0]), " 2: ", Image.fromarray(pixels[1].swapaxes(0, 1).copy()), " Where?")
        (prepared,) = self.prepare([content])
        inputs = {key: value.to(self.device) for key, value in prepared.inputs.items()}
        vision = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        theirs = self.hf(**vision, use_cache=False).logits[0, -1].double().log_softmax(-1)
        hidden_D = self.last_hidden(self.encode_pixels([content])[0])
        ours = self.hf.get_output_embeddings()(hidden_D).double().log_softmax(-1)
        return float((theirs - ours).abs().max())

    @torch.no_grad()
    def _packed_difference(self) -> float:
        """The difference of the log-probabilities of two completions, packed rows against plain ones; it is 0 where rows are not packed."""
        if not (self.share_prefix and self.packs):
            return 0.0
        pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        prompts = self.encode([(Image.fromarray(pixels), " Where?")])
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(10, min(400, self.hf.config.get_text_config().vocab_size), (2, 12), generator=generator, device="cpu").to(
            self.device
        )
        completions = [[ids[0], ids[1, :7]]]
        packed, plain = (self.logps(prompts, completions, share_prefix=share)[0] for share in (True, False))
        finite = packed.isfinite() & plain.isfinite()
        return float((packed - plain)[finite].abs().max())
