"""What every Hugging Face vision-language model has in common: loading, adapters, forward passes; what it reads is in ``encoding``.

A family's file holds only its differences: frame, images, positions.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from locus_lightning.backbones import base_files, kernels, loading, saved, toy
from locus_lightning.backbones import checkpoint as checkpoint_files
from locus_lightning.backbones.adapters import LoRA
from locus_lightning.backbones.decoding_weights import fused_adapters, merged_adapters
from locus_lightning.backbones.reference import WithReference
from locus_lightning.backbones.shared_prefix import attention
from locus_lightning.backbones.shared_prefix.cache import empty_cache
from locus_lightning.backbones.shared_prefix.packing import lay_out, why_not
from locus_lightning.backbones.token_logps import CHUNK, token_logps
from locus_lightning.errors import ConfigError
from locus_lightning.types import Content, Prompt

log = logging.getLogger(__name__)


class HFBackbone(WithReference):
    """A model of transformers' ``AutoModelForImageTextToText`` with its own processor.

    Args:
        checkpoint: A Hub name, a folder, ``locus-tiny`` (it comes with the package), or ``toy:FAMILY`` for a random toy model that is
            made on the spot.
        dtype: The type of the weights that are not quantised.
        quantize: ``nf4`` loads the language model's linear layers in 4 bits with double quantisation (bitsandbytes); null loads them as
            they are.
        lora: The settings of the adapters. Null trains all weights of the language model, and ``nf4`` is then refused.
        train_vision: Whether gradients reach the vision tower and the projector. Where they do not, the tower's output is computed once
            a group.
        gradient_checkpointing: Whether activations are computed again in the backward pass, which needs less memory and more time.
        share_prefix: Whether a prompt is paid for once a group. False runs the plain batch.
        trust_remote_code: Whether code that comes with the checkpoint may run. Leave it off unless you have read that code.
        kernels: ``liger`` computes norms, gated layers and rotary embeddings with the fused kernels of liger-kernel where a model's formula
            is known, on a GPU (``pip install 'locus-lightning[gpu]'``); null computes them as transformers does.
    """

    model_types: tuple[str, ...] = ()
    joins_features = False  # the model takes the features of its images as one (1, tokens, D) tensor, not as a list

    def __init__(
        self,
        checkpoint: str,
        dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32",
        quantize: Literal["nf4"] | None = None,
        lora: LoRA | None = None,
        train_vision: bool = False,
        gradient_checkpointing: bool = False,
        share_prefix: bool = True,
        trust_remote_code: bool = False,
        kernels: Literal["liger"] | None = None,
    ) -> None:
        super().__init__()
        if quantize and lora is None:
            raise ConfigError("backbone.quantize is nf4 but backbone.lora is null: 4-bit weights cannot be trained; set backbone.lora.")
        if quantize and train_vision:
            raise ConfigError("backbone.train_vision is true with quantize nf4; train the vision side without quantisation.")
        self.checkpoint, self.dtype, self.quantize, self.lora = checkpoint, getattr(torch, dtype), quantize, lora
        self.train_vision, self.gradient_checkpointing, self.share_prefix = train_vision, gradient_checkpointing, share_prefix
        self.trust_remote_code, self.kernels, self.adapter_rank = trust_remote_code, kernels, lora.rank if lora else 0
        self.model: Any = None
        self.processor: Any = None
        self.reference: nn.Module | None = None
        self.packs = True
        self._vision_moves = train_vision
        self._changed: set[str] = set()

    # ---- loading -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """See :meth:`Backbone.check`."""
        if self.kernels:
            kernels.check_installed()
        checkpoint_files.check(self.checkpoint, self.model_types, type(self).__name__, self.trust_remote_code)
        checkpoint_files.check_quantised(self.checkpoint, self.trust_remote_code, bool(self.lora), self.quantize, self.train_vision)

    @property
    def loaded(self) -> bool:
        """See :meth:`Backbone.loaded`."""
        return self.model is not None

    def load(self) -> None:
        """See :meth:`Backbone.load`."""
        if self.loaded:
            return
        with tempfile.TemporaryDirectory() as folder:
            source = checkpoint_files.resolve(self.checkpoint)
            if source.startswith(toy.PREFIX):
                source = str(toy.save_toy_checkpoint(source.removeprefix(toy.PREFIX), Path(folder)))
            self.processor = loading.load_processor(source, self.trust_remote_code)
            checkpoint_files.check_vocabulary(source, self.processor, self.trust_remote_code)
            self.model = loading.load_model(source, self.dtype, self.quantize, self.lora, self.trust_remote_code, self.load_on)
        self.prepare_processor()
        reason = why_not(self.hf.config)
        self.packs = reason is None
        self.shares_keys = self.packs and loading.language_model(self.hf).config._attn_implementation == attention.NAME
        if self.share_prefix and reason:
            log.warning("%s cannot share a prompt among its completions (%s): the plain batch is run, at the price of a prompt each.",
                        self.checkpoint, reason)  # fmt: skip
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # rollout, reference and update must be the same function
        if self.kernels:
            kernels.fuse(self.hf)
        kernels.fuse_norms(self.hf)
        self.mark_embeddings()
        if self.gradient_checkpointing:
            self.hf.gradient_checkpointing_enable({"use_reentrant": False})
        self.turn_end()  # warns where answers would never end
        self.set_trainable()
        if self.checkpoint.startswith(toy.PREFIX):
            self.weights_on_disk = False
            self._changed = {name for name, _ in self.named_parameters()}
        self.train(self.training)  # from_pretrained left evaluation mode, in which checkpointing does nothing

    def prepare_processor(self) -> None:
        """Settings of the processor that the family needs, such as no centre crop."""

    @property
    def hf(self) -> Any:
        """The transformers model, adapters inside."""
        return self.model.get_base_model() if self.lora else self.model

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.hf.get_input_embeddings().weight.device

    # ---- what is trained -----------------------------------------------------------------------------------------

    def set_trainable(self, *, vision: bool | None = None) -> None:
        """See :meth:`Backbone.set_trainable`."""
        vision = self.train_vision if vision is None else vision
        side, unread = set(loading.vision_parameters(self.hf)), loading.unread_parameters(self.hf)
        for name, parameter in self.model.named_parameters():
            language = "lora_" in name if self.lora else True
            wanted = vision and parameter not in unread if parameter in side else language
            parameter.requires_grad_(wanted and parameter.is_floating_point())
        self._vision_moves = vision
        self._changed |= {name for name, p in self.named_parameters() if p.requires_grad}

    def parameter_groups(self) -> list[Any]:
        """See :meth:`Backbone.parameter_groups`."""
        if self.lora is None or self.lora.plus == 1:
            return super().parameter_groups()
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        faster = [p for name, p in trained if "lora_B" in name]
        return [{"params": [p for name, p in trained if "lora_B" not in name]}, {"params": faster, "lr_factor": self.lora.plus}]

    def saved_parameters(self) -> set[str]:
        """See :meth:`Backbone.saved_parameters`."""
        return self._changed

    def save_pretrained(self, folder: Path, remember: Mapping[str, Any] | None = None) -> None:
        """See :meth:`Backbone.save_pretrained`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, state_dict=self._whole("model."))
        self.processor.save_pretrained(folder)
        base_files.keep_base_files(self.checkpoint, Path(folder), self.dtype)
        saved.write_beside_adapter(
            Path(folder), self._whole() or dict(self.named_parameters()), self.saved_parameters() if self.lora else set()
        )
        base_files.readable_by_others(Path(folder))
        saved.write_about(Path(folder), type(self), self.family_settings(), self.remembers if remember is None else remember)

    def train(self, mode: bool = True) -> HFBackbone:
        """Only what gradient checkpointing looks at leaves evaluation mode: all passes are the same function."""
        super().train(False)
        self.training = mode
        if self.gradient_checkpointing and self.loaded:
            for module in self.hf.modules():
                if hasattr(module, "gradient_checkpointing"):
                    module.training = mode
        return self

    @contextmanager
    def sampling(self, *, merge_adapters: bool | None = None, dequantize: bool = False) -> Iterator[None]:
        """See :meth:`Backbone.sampling`; None merges float32 weights on a CPU, where the copies are exact and small. Adapters that are not
        merged act in the weights' own type, with one product for layers that read the same input."""
        if merge_adapters is None:
            merge_adapters = self.device.type == "cpu" and self.dtype.itemsize >= 4 and self.quantize is None
        with super().sampling():
            if self.lora is None and not dequantize:
                yield
            elif merge_adapters:
                with merged_adapters(self.model, self.dtype):
                    yield
            else:
                with fused_adapters(self.model, self.dtype, dequantize=dequantize):
                    yield

    # ---- forward passes ------------------------------------------------------------------------------------------

    def hidden(
        self,
        ids_RS: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        features: Sequence[Tensor] = (),
        *,
        cache: Any = None,
        reference: bool = False,
    ) -> Tensor:
        """See :meth:`Backbone.hidden`."""
        out = self._model(reference).base_model(
            input_ids=ids_RS,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=cache is not None,
            mm_encoder_outputs={"image": self.image_outputs(features)} if features else None,
            **self.further_inputs(ids_RS, bool(features)),
        )
        return out.last_hidden_state

    def empty_cache(self) -> Any:
        """See :meth:`Backbone.empty_cache`."""
        return empty_cache(self.hf.config.get_text_config())

    def last_hidden(self, prompt: Prompt, after: str = "") -> Tensor:
        """Last hidden state (D,) of one prompt, with the words ``after`` behind it: what the next token is predicted from."""
        after_ids = self.processor.tokenizer(after, add_special_tokens=False).input_ids
        ids_P = torch.cat([prompt.ids_P, torch.tensor(after_ids, dtype=torch.long, device=self.device)])
        more = prompt.next_position + torch.arange(len(after_ids), device=self.device)
        positions = torch.cat([prompt.positions_P, more.expand(prompt.positions_P.shape[0], -1)], dim=1)
        features = [image for images in self.features_of([prompt]) for image in images]
        positions = positions if len(positions) == 1 else positions[:, None]
        return self.hidden(ids_P[None], torch.ones_like(ids_P)[None], positions, features)[0, -1]

    def image_outputs(self, features: Sequence[Tensor]) -> Any:
        """Features as the model's own vision side would hand them to its language model."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=torch.cat(list(features))[None] if self.joins_features else list(features))  # type: ignore[arg-type]

    def further_inputs(self, ids_RS: Tensor, images: bool) -> dict[str, Any]:
        """Inputs that only some families have; ``images`` tells whether these tokens hold any."""
        return {}

    def next_token_logits(self, hidden_ND: Tensor, temperature: float = 1.0, *, reference: bool = False) -> Tensor:
        """See :meth:`Backbone.next_token_logits`."""
        logits = self._model(reference).get_output_embeddings()(hidden_ND)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits if temperature == 1 else logits / temperature
        return logits.index_fill_(-1, self._banned(logits.device), float("-inf"))  # in place: logits are what takes most memory

    def prompt_length(self, content: Content) -> int:
        """See :meth:`Backbone.prompt_length`."""
        (prompt,) = self.encode_pixels([content])
        return len(prompt.ids_P)

    def row_tokens(self, prompt: int, group: int, completion: int) -> int:
        """See :meth:`Backbone.row_tokens`."""
        return prompt + group * completion if self.share_prefix and self.packs else group * (prompt + completion)

    def logps(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Tensor]],
        *,
        temperature: float = 1.0,
        reference: bool = False,
        share_prefix: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Backbone.logps`."""
        share_prefix = self.share_prefix if share_prefix is None else share_prefix
        rows = lay_out(prompts, completions, share_prefix=share_prefix and self.packs)

        def one_pass() -> tuple[Tensor, Tensor]:
            features = self.features_of(prompts, reference=reference)
            of_rows = [image for b in rows.prompts for image in features[b]]
            hidden = self.hidden(rows.ids_RS, rows.mask, rows.positions, of_rows, reference=reference)
            hidden_ND = hidden.flatten(0, 1)[rows.source_N]
            pieces = [
                token_logps(lambda h: self.next_token_logits(h, temperature, reference=reference), h, t, self.entropy_gradient)
                for h, t in zip(hidden_ND.split(CHUNK), rows.target_N.split(CHUNK), strict=True)
            ]
            return torch.cat([logps for logps, _ in pieces]), torch.cat([entropy for _, entropy in pieces])

        model = self._model(reference)
        with self._as_reference() if reference else nullcontext():
            logps_N, entropy_N = model.one_pass(one_pass) if hasattr(model, "one_pass") else one_pass()
        blank = logps_N.new_zeros(rows.shape).flatten()
        logps_BGT, entropy_BGT = (blank.index_copy(0, rows.place_N, x).view(rows.shape) for x in (logps_N, entropy_N))
        return logps_BGT, entropy_BGT
