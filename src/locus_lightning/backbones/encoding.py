"""From user messages to prompts: words through the chat template, images through the processor and the vision side."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError
from locus_lightning.tasks.parsing import opened_by
from locus_lightning.types import Content, Prepared, Prompt

log = logging.getLogger(__name__)

TOWER_PROMPTS = 16
"""Prompts whose images go through the frozen tower at a time."""

_MARK = "\x00"
"""Stands for words while the chat template is examined."""

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""The tags of the answer's structure, which decoding keeps even where a tokenizer counts them as special tokens."""

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
    _turn_end: int | None = None
    _banned_ids: Tensor | None = None

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

    def encode(self, contents: Sequence[Content]) -> list[Prompt]:
        """See :meth:`Backbone.encode`. Pixels are prepared here, once, for rollout, reference and policy alike."""
        return self.encode_prepared(self.prepare(contents))

    def encode_prepared(self, prepared: Sequence[Prepared]) -> list[Prompt]:
        """See :meth:`Backbone.encode_prepared`."""
        if self._vision_moves:
            return [self._prompt(one) for one in prepared]
        prompts: list[Prompt] = []
        for i in range(0, len(prepared), TOWER_PROMPTS):  # pixels come to the device with their part, and are let go with it
            part = [self._prompt(one) for one in prepared[i : i + TOWER_PROMPTS]]
            with torch.no_grad():
                prompts += [self._without_pixels(p, f) for p, f in zip(part, self.vision_features(part), strict=True)]
        return prompts

    def encode_pixels(self, contents: Sequence[Content]) -> list[Prompt]:
        """See :meth:`Backbone.encode_pixels`."""
        return [self._prompt(one) for one in self.prepare(contents)]

    def prepare(self, contents: Sequence[Content]) -> list[Prepared]:
        """See :meth:`Backbone.prepare`."""
        prepared = self._prepare([self.prompt_text(content) for content in contents], [pictures_of(content) for content in contents])
        return [replace(one, content=tuple(content)) for one, content in zip(prepared, contents, strict=True)]

    @staticmethod
    def _without_pixels(prompt: Prompt, features: tuple[Tensor, ...]) -> Prompt:
        """A prompt with features instead of pixels, which nothing reads again while the vision side is frozen."""
        return replace(prompt, features=features, vision={k: v for k, v in prompt.vision.items() if not k.startswith("pixel")})

    def encode_shared(self, groups: Sequence[Sequence[Content]]) -> tuple[list[Prompt], list[list[Tensor]]]:
        """See :meth:`Backbone.encode_shared`."""
        texts, images, rests = [], [], []
        for group in groups:
            first = group[0]
            before, after = self.prompt_text(first), ""
            continuations = [""]
            if len(group) > 1:
                before, after = self.prompt_text((first[0], _MARK)).split(_MARK)
                continuations = ["".join(part for part in content if isinstance(part, str)) + after for content in group]
            texts.append(before)
            images.append(pictures_of(first))
            ids = self.processor.tokenizer(continuations, add_special_tokens=False).input_ids
            rests.append([torch.tensor(one, dtype=torch.long, device=self.device) for one in ids])
        return self.encode_prepared(self._prepare(texts, images)), rests

    def prompt_text(self, content: Content, answer: str | None = None) -> str:
        """A user message through the model's own chat template, each image's placeholder where the image stands.

        Args:
            content: words and images.
            answer: what the assistant says; None leaves its turn open.
        """
        parts: list[dict[str, str]] = []
        for part in content:
            placeholder = self.processor.image_token if self.images_in_text else None
            text = part if isinstance(part, str) else placeholder
            if text is None:
                parts.append({"type": "image"})
            elif parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += text
            else:
                parts.append({"type": "text", "text": text})
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=answer is None, tokenize=False))

    def _prepare(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> list[Prepared]:
        """Templated texts and their images through the processor, on the CPU."""
        ready = [[self.prepare_image(image) for image in some] for some in images]
        if not self.fixed_size or len({len(some) for some in ready}) != 1:
            return [Prepared(text, self._process([text], some)) for text, some in zip(texts, ready, strict=True)]
        out = self._process(texts, [image for some in ready for image in some])
        counts = [len(some) for some in ready]
        parts = {key: out[key].split(counts) for key in out if key not in _OF_TOKENS}
        rows = zip(out["input_ids"], out["attention_mask"], strict=True)
        return [
            Prepared(text, {"input_ids": ids[mask.bool()][None]} | {key: part[b] for key, part in parts.items()})
            for b, (text, (ids, mask)) in enumerate(zip(texts, rows, strict=True))
        ]

    def _process(self, texts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, Tensor]:
        return dict(self.processor(text=list(texts), images=list(images), padding=True, return_tensors="pt", **self._specials(texts)))

    def _specials(self, texts: Sequence[str]) -> dict[str, bool]:
        """A template that writes the begin-of-sequence token itself must not get another from the tokenizer."""
        bos = self.processor.tokenizer.bos_token
        return {"add_special_tokens": False} if bos and all(text.startswith(bos) for text in texts) else {}

    def _prompt(self, prepared: Prepared) -> Prompt:
        """A prepared message on the model's device."""
        inputs = {key: value.to(self.device) for key, value in prepared.inputs.items()}
        ids_P = inputs["input_ids"][0]
        room = self.context()
        if room is not None and len(ids_P) >= room:
            raise ConfigError(
                f"a prompt has {len(ids_P):,} tokens and {self.checkpoint} reads {room:,}: an image would be cut off; lower its budget "
                f"({self.convention.budget if self.convention else 'see the backbone'})."
            )
        positions_P = self.positions(ids_P, inputs)
        vision = {key: value for key, value in inputs.items() if key not in _OF_TOKENS}
        next_position = int(positions_P.max()) + 1
        return Prompt(prepared.text, ids_P, positions_P, next_position, vision, content=prepared.content, opened=opened_by(prepared.text))

    def context(self) -> int | None:
        """See :meth:`Backbone.context`."""
        room = getattr(self.hf.config.get_text_config(), "max_position_embeddings", None)
        return int(room) if room else None

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
        return torch.tensor([*ids, self.turn_end()], device=self.device)

    def turn_end(self) -> int:
        """The id that ends an answer: of the ids that end a completion the one that the chat template writes behind an assistant's turn, or
        the first where it writes none."""
        if self._turn_end is None:
            self._turn_end = self._find_turn_end()
        return self._turn_end

    def _find_turn_end(self) -> int:
        try:
            behind = self.prompt_text((_MARK,), answer=_MARK).rsplit(_MARK, 1)[-1]
        except Exception as cause:  # templates are programs of others: some refuse an assistant's turn
            log.info("the chat template writes no assistant turn (%s); answers end with the first end-of-sequence id.", cause)
            return self.eos_ids[0]
        written = self.processor.tokenizer(behind, add_special_tokens=False).input_ids
        ends = [i for i in written if i in self.eos_ids]
        special = [i for i in written if i in self._special_ids()]
        if special and not ends:
            log.warning(
                "%s: the chat template ends a turn with %r, which is not among the ids that end a completion (%s): answers would never stop "
                "there; add it to generation_config.json's eos_token_id.",
                self.checkpoint, self.processor.tokenizer.decode(special[:1]), self.processor.tokenizer.decode(list(self.eos_ids)),
            )  # fmt: skip
        return ends[0] if ends else self.eos_ids[0]

    def decode(self, ids_T: Tensor) -> str:
        """See :meth:`Backbone.decode`."""
        tokenizer = self.processor.tokenizer
        special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        if not any(token in _TAGS for token in special.values()):
            return str(tokenizer.decode(ids_T, skip_special_tokens=True))
        skipped = self._special_ids() - {i for i, token in special.items() if token in _TAGS}
        return str(tokenizer.decode([i for i in ids_T.tolist() if i not in skipped], skip_special_tokens=False))

    def _special_ids(self) -> set[int]:
        tokenizer = self.processor.tokenizer
        return {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}

    def describe_prompt(self, prompt: Prompt) -> str:
        """See :meth:`Backbone.describe_prompt`."""
        images, decode = set(self.banned_ids), self.processor.tokenizer.decode
        runs = groupby(prompt.ids_P.tolist(), key=lambda i: i in images)
        return "".join(f"⟨image: {len(list(ids))} tokens⟩" if image else decode(list(ids)) for image, ids in runs)

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """See :meth:`Backbone.banned_ids`: a placeholder of an image that is not there breaks the next forward pass."""
        config = self.hf.config
        names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
        return tuple(sorted({int(i) for name in names if isinstance(i := getattr(config, name, None), int)}))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """See :meth:`Backbone.eos_ids`."""
        stated = self.hf.generation_config.eos_token_id
        ids = stated if isinstance(stated, list) else [stated]
        tokenizer_eos = self.processor.tokenizer.eos_token_id
        return tuple(dict.fromkeys(i for i in (tokenizer_eos, *ids) if i is not None))

    def _banned(self, device: torch.device) -> Tensor:
        if self._banned_ids is None or self._banned_ids.device != device:
            self._banned_ids = torch.tensor(self.banned_ids, dtype=torch.long, device=device)
        return self._banned_ids


def pictures_of(content: Content) -> list[Image.Image]:
    """The images of a message, in order."""
    return [part for part in content if not isinstance(part, str)]
