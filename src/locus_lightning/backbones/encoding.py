"""From samples to prompts: words through the chat template, images through the processor and the vision side."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError
from locus_lightning.types import CueSample, Prompt, Question

TOWER_PROMPTS = 16
"""Prompts whose images go through the frozen tower at a time."""

_MARK = "\x00"
"""Stands for the question while the chat template is looked at."""

_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor gives for tokens, not for images."""


class Encoding(Backbone):
    """What a Hugging Face model reads; :class:`HFBackbone` loads it and runs it. A family's file overrides what is its own here."""

    per_image_key = "pixel_values"
    fixed_size = False
    """Every image becomes one tensor of the same size, so that those of several prompts can be prepared in one go."""
    images_in_text = False
    """Write image placeholders into the text, for families whose chat template moves all images to the front."""
    checkpoint: str
    processor: Any
    _vision_moves: bool

    @property
    @abstractmethod
    def hf(self) -> Any:
        """The transformers model, adapters inside."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model lives."""

    @abstractmethod
    def _model(self, reference: bool) -> Any:
        """The policy's model, or the reference's."""

    def encode(self, samples: Sequence[CueSample | Question]) -> list[Prompt]:
        """See :meth:`Backbone.encode`. Pixels are prepared here, once, for rollout, reference and policy alike."""
        return self._with_features(self.prompts(samples))

    def encode_turns(self, turns: Sequence[Sequence[str | Image.Image]]) -> list[Prompt]:
        """As :meth:`encode`, of user turns as they are: words and any number of images, in order."""
        return self._with_features(self._of_turns(turns))

    def prompts(self, samples: Sequence[CueSample | Question]) -> list[Prompt]:
        """As :meth:`encode`, with pixels in place of their features."""
        return self._of_turns([self.turn(sample) for sample in samples])

    def _of_turns(self, turns: Sequence[Sequence[str | Image.Image]]) -> list[Prompt]:
        return self.tensors([self.prompt_text(turn) for turn in turns], [_pictures(turn) for turn in turns])

    def _with_features(self, prompts: list[Prompt]) -> list[Prompt]:
        if self._vision_moves:
            return prompts
        with torch.no_grad():
            parts = [prompts[i : i + TOWER_PROMPTS] for i in range(0, len(prompts), TOWER_PROMPTS)]
            return [self._seen(p, features) for part in parts for p, features in zip(part, self.vision_features(part), strict=True)]

    @staticmethod
    def _seen(prompt: Prompt, features: tuple[Tensor, ...]) -> Prompt:
        """With features instead of pixels, which nobody looks at again while the vision side stays as it is."""
        return replace(prompt, features=features, vision={k: v for k, v in prompt.vision.items() if not k.startswith("pixel")})

    def encode_lessons(self, groups: Sequence[Sequence[CueSample | Question]]) -> tuple[list[Prompt], list[list[Tensor]]]:
        """See :meth:`Backbone.encode_lessons`."""
        texts, images, rests = [], [], []
        for group in groups:
            turn = self.turn(group[0])
            before, after = self.prompt_text(turn), ""
            said = [""]
            if len(group) > 1:
                before, after = self.prompt_text((turn[0], _MARK)).split(_MARK)
                said = ["".join(part for part in self.turn(question) if isinstance(part, str)) + after for question in group]
            texts.append(before)
            images.append(_pictures(turn))
            ids = self.processor.tokenizer(said, add_special_tokens=False).input_ids
            rests.append([torch.tensor(one, dtype=torch.long, device=self.device) for one in ids])
        return self._with_features(self.tensors(texts, images)), rests

    def prompt_text(self, turn: Sequence[str | Image.Image]) -> str:
        """A user turn through the model's own chat template, each image's placeholder where the image stands."""
        content: list[dict[str, str]] = []
        for part in turn:
            mark = self.processor.image_token if self.images_in_text else None
            text = part if isinstance(part, str) else mark
            if text is None:
                content.append({"type": "image"})
            elif content and content[-1]["type"] == "text":
                content[-1]["text"] += text
            else:
                content.append({"type": "text", "text": text})
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)

    def tensors(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> list[Prompt]:
        """Prompts from templated texts and their images, on the model's device."""
        ready = [[self.prepare_image(image) for image in some] for some in images]
        if not self.fixed_size or len({len(some) for some in ready}) != 1:
            return [self._prompt(text, self._process([text], some)) for text, some in zip(texts, ready, strict=True)]
        out = self._process(texts, [image for some in ready for image in some])
        counts = [len(some) for some in ready]
        parts = {key: out[key].split(counts) for key in out if key not in _OF_TOKENS}
        rows = zip(out["input_ids"], out["attention_mask"], strict=True)
        return [
            self._prompt(text, {"input_ids": ids[mask.bool()][None]} | {key: part[b] for key, part in parts.items()})
            for b, (text, (ids, mask)) in enumerate(zip(texts, rows, strict=True))
        ]

    def _process(self, texts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return dict(self.processor(text=list(texts), images=list(images), padding=True, return_tensors="pt").to(self.device))

    def _prompt(self, text: str, inputs: dict[str, Tensor]) -> Prompt:
        ids_P = inputs["input_ids"][0]
        room = getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)
        if room and len(ids_P) >= room:
            raise ConfigError(
                f"a prompt has {len(ids_P):,} tokens and {self.checkpoint} reads {room:,}: an image would be cut off; lower its budget "
                f"({self.convention.budget if self.convention else 'see the backbone'})."
            )
        positions_P = self.positions(ids_P, inputs)
        vision = {key: value for key, value in inputs.items() if key not in _OF_TOKENS}
        return Prompt(text, ids_P, positions_P, int(positions_P.max()) + 1, vision)

    def prepare_image(self, image: Image.Image) -> Image.Image:
        """An image as the processor is given it; families that pad do so here."""
        return image

    def positions(self, ids_P: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Rotary positions of a prompt: (1, P), or (3, P)."""
        return torch.arange(len(ids_P), device=ids_P.device)[None]

    def vision_features(self, prompts: Sequence[Prompt], *, reference: bool = False) -> list[tuple[Tensor, ...]]:
        """Projected features of every prompt's images in one pass of the tower, one (tokens, D) tensor an image;
        an image that the model sees in tiles may count as several."""
        counts = [len(p.vision[self.per_image_key]) for p in prompts]
        images = iter(
            self.split_images(self._model(reference).base_model.get_image_features(**self.merge_vision(prompts), return_dict=True))
        )
        return [tuple(next(images) for _ in range(count)) for count in counts]

    def split_images(self, outputs: Any) -> Sequence[Tensor]:
        """What the model's own vision side gave, as one (tokens, D) tensor an image (or a tile)."""
        return outputs.pooler_output  # type: ignore[no-any-return]

    def features_of(self, prompts: Sequence[Prompt], *, reference: bool = False) -> list[tuple[Tensor, ...]]:
        """See :meth:`Backbone.features_of`."""
        kept = [p.features for p in prompts if p.features is not None]
        return kept if len(kept) == len(prompts) else self.vision_features(prompts, reference=reference)

    def merge_vision(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """The processor's tensors of several prompts as one batch of images."""
        return {key: torch.cat([p.vision[key] for p in prompts]) for key in prompts[0].vision}

    def tokenize_answer(self, text: str) -> Tensor:
        """See :meth:`Backbone.tokenize_answer`."""
        ids = self.processor.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor([*ids, self.eos_ids[0]], device=self.device)

    def decode(self, ids_T: Tensor) -> str:
        """See :meth:`Backbone.decode`."""
        return self.processor.tokenizer.decode(ids_T, skip_special_tokens=True)


def _pictures(turn: Sequence[str | Image.Image]) -> list[Image.Image]:
    return [part for part in turn if not isinstance(part, str)]
