"""Rollouts on a vLLM server, which has a process, an environment and cards of its own."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError, LocusError, TrainingError
from locus_lightning.ranks import from_all, this_rank, world_size
from locus_lightning.rollout.base import RolloutEngine, SamplingParams
from locus_lightning.rollout.vllm_proof import prove
from locus_lightning.rollout.vllm_server import AdapterLostError, ServerLostError, VLLMServer, data_url
from locus_lightning.types import Generation, Prompt

log = logging.getLogger("locus_lightning")

_BANNED = -100.0
"""What is added to the logits of ids that are never sampled; vLLM takes no more."""
_LOSSES = 3
"""Times in a row that the server may be lost without having completed a prompt in between."""


class VLLMRollout(RolloutEngine):
    """Completions come from ``vllm serve``, started with the line that ``locus serve --config ...`` prints. Adapters are handed over whenever
    they have changed.

    Before training the server has to show that it has the same model: equal prompt ids, and log-probabilities within ``max_gap`` of the
    trainer's, without an adapter and with one that changes them. Old log-probabilities are always those of the trainer; set the objective's
    ``sampler_correction`` for what remains of a difference. A server that is lost is waited for; then training stops, with its state saved.

    Args:
        url: The address of the server. Where it wants a key, set VLLM_API_KEY in the environment.
        max_gap: The bound of the mean difference between the server's log-probabilities and the trainer's, in nats a token, before
            training and at every rollout batch.
        wait: How many seconds a server that does not answer is waited for, before training and during it.
        timeout: How many seconds the completions of one prompt may take.
        adapter_folder: Where adapters are written for the server; it has to see the folder under the same path.
        at_once: The number of prompts that are sent to the server at a time by each process.
    """

    exact = False
    max_gap: float

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        max_gap: float = 0.05,
        wait: float = 600.0,
        timeout: float = 1800.0,
        adapter_folder: str = "runs/vllm_adapters",
        at_once: int = 64,
    ) -> None:
        if max_gap <= 0 or wait < 0 or timeout <= 0 or at_once < 1:
            raise ConfigError(
                f"rollout: max_gap is {max_gap} (above 0), wait {wait} (at least 0), timeout {timeout} (above 0), at_once {at_once} (at least 1)."
            )
        self.url, self.max_gap, self.wait, self.at_once = url, max_gap, wait, at_once
        self.server = VLLMServer(url, timeout)
        self.folder = Path(adapter_folder).expanduser().absolute()
        self._name = ""  # of the adapter that holds the policy's weights
        self._run = ""  # names of adapters begin with this
        self._count = 0
        self._sums: list[int] = []

    # ---- before training -----------------------------------------------------------------------------------------

    def check(self, backbone: Backbone) -> None:
        """See :meth:`RolloutEngine.check`."""
        what = None
        lora = getattr(backbone, "lora", None)
        if not backbone.adapter_rank:
            what = "backbone.lora is null: all weights would have to be moved to the server after every step, which is not built; set backbone.lora"
        elif backbone.train_vision:
            what = "backbone.train_vision is true, and vLLM takes adapters of the language model alone; set it to false"
        elif getattr(lora, "dora", False):
            what = "backbone.lora.dora is true, which vLLM does not serve; set it to false"
        if what:
            raise ConfigError(f"model.rollout is VLLMRollout and {what}, or use HFRollout.")

    def prove(self, backbone: Backbone, prompts: Sequence[Prompt], sampling: SamplingParams) -> None:
        """See :meth:`RolloutEngine.prove`."""
        _refuse_others(backbone)
        prove(self, backbone, prompts, sampling)

    # ---- during training -----------------------------------------------------------------------------------------

    def sync(self, backbone: Backbone) -> None:
        """Hand the adapter over under a new name, where it has changed. The first process does it for all."""
        sums = _sums(backbone)
        if self._name and sums == self._sums:
            return
        _refuse_others(backbone)
        rank, world = this_rank(), world_size()
        self._run = self._run or from_all(f"locus-{uuid.uuid4().hex[:8]}", world)[0]
        before, name, error = self._name, f"{self._run}-{self._count + 1}", ""
        if rank == 0:
            try:
                self.load(backbone, name)
            except Exception as cause:  # whatever it is, the other processes have to hear of it
                error = str(cause) if isinstance(cause, LocusError) else f"{type(cause).__name__}: {cause}"
        error = from_all(error, world)[0]
        if error:
            raise TrainingError(error)
        self._name, self._count, self._sums = name, self._count + 1, sums
        if rank == 0 and before:
            self.unload(before)

    def generate(self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[list[Generation]]:
        """See :meth:`RolloutEngine.generate`. With top-p or top-k the log-probabilities are of what is left by them."""
        if not self._name:
            self.sync(backbone)
        return self.complete(backbone, prompts, n, sampling, self._name)

    def close(self) -> None:
        """Let the server go of the adapter."""
        if self._name and this_rank() == 0:
            self.unload(self._name)
        self._name = ""

    # ---- requests ------------------------------------------------------------------------------------------------

    def model(self) -> str:
        """The name under which the server knows the model without adapters."""
        return next(str(model["id"]) for model in self.server.models() if not model.get("parent"))

    def complete(
        self, backbone: Backbone, prompts: Sequence[Prompt], n: int, sampling: SamplingParams, model: str
    ) -> list[list[Generation]]:
        """As :meth:`generate`, with what the server knows as ``model``: the model itself, or an adapter."""
        rows = [backbone.unprocessed(prompt) for prompt in prompts]
        requests = [
            {"model": model, "token_ids": ids, "return_token_ids": True, "sampling_params": self._sampling(backbone, n, sampling)}
            for ids, _ in rows
        ]
        answers = self._answers(requests, [images for _, images in rows])
        return [self._read(backbone, prompt, answer, sampling) for prompt, answer in zip(prompts, answers, strict=True)]

    @staticmethod
    def _sampling(backbone: Backbone, n: int, sampling: SamplingParams) -> dict[str, Any]:
        """vLLM's settings; a seed of torch's generator, so that a run that is continued draws the same."""
        return {
            "n": n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_new_tokens,
            "min_tokens": sampling.min_new_tokens,
            "stop_token_ids": list(backbone.eos_ids),
            "ignore_eos": True,  # those of the server's own files; ours are above
            "logit_bias": {str(i): _BANNED for i in backbone.banned_ids},
            "logprobs": 0,
            "detokenize": False,
            "seed": int(torch.randint(2**31 - 1, ())),
        }

    def _answers(self, requests: Sequence[dict[str, Any]], images: Sequence[Sequence[Image.Image]]) -> list[dict[str, Any]]:
        """All answers; a server that is lost meanwhile is waited for, gets the adapter again, and is asked for the rest."""
        answers: dict[int, dict[str, Any]] = {}
        losses = 0
        while len(answers) < len(requests):
            rest, before = [i for i in range(len(requests)) if i not in answers], len(answers)
            lost = self._send(rest, requests, images, answers)
            if lost is None:
                continue
            losses = 1 if len(answers) > before else losses + 1
            if losses > _LOSSES:
                raise TrainingError(f"{self.server} was lost {losses} times while it completed the same prompts: {lost}")
            if isinstance(lost, ServerLostError):
                log.warning("%s was lost in a rollout (%s).", self.server, lost)
            self._hand_over(requests[0]["model"], f"it was lost in a rollout ({lost})", adapter=requests[0]["model"] == self._name)
        return [answers[i] for i in range(len(requests))]

    def _send(
        self,
        rest: Sequence[int],
        requests: Sequence[dict[str, Any]],
        images: Sequence[Sequence[Image.Image]],
        answers: dict[int, dict[str, Any]],
    ) -> Exception | None:
        """Send some requests, put what comes back into ``answers``, and give the error that kept the others from coming."""

        since = self.server.dropped

        def ask(i: int) -> dict[str, Any]:
            parts = [{"type": "image_url", "url": data_url(image)} for image in images[i]]
            answer = self.server.generate({**requests[i], "content_parts": parts or None}, since)
            reasons = {choice["finish_reason"] for choice in answer["choices"]} - {"stop", "length"}
            if reasons:  # a server that is told to end, or is paused, hands out what it has
                raise ServerLostError(f"it gave up completions: {', '.join(map(str, reasons))}")
            return answer

        lost: Exception | None = None
        pool = ThreadPoolExecutor(min(self.at_once, len(rest)), thread_name_prefix="vllm")
        try:
            for i, answer in [(i, pool.submit(ask, i)) for i in rest]:
                try:
                    answers[i] = answer.result()
                except (ServerLostError, AdapterLostError) as cause:
                    lost = cause
        except BaseException:  # Ctrl-C too: the server shall not go on
            pool.shutdown(wait=False, cancel_futures=True)  # first, or freed threads would begin the next requests
            self.server.drop_requests()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return lost

    def _read(self, backbone: Backbone, prompt: Prompt, answer: Mapping[str, Any], sampling: SamplingParams) -> list[Generation]:
        """Generations of one prompt, once it is sure that the server has read the same one."""
        ours, theirs = prompt.ids_P.tolist(), list(answer["prompt_token_ids"])
        if ours != theirs:
            of_images = [sum(i in backbone.banned_ids for i in ids) for ids in (ours, theirs)]
            raise ConfigError(
                f"{self.server} reads a prompt as {len(theirs):,} tokens ({of_images[1]:,} of images) where the trainer has {len(ours):,} "
                f"({of_images[0]:,}): its tokenizer, or the budget of an image, is another; start it with the line that `locus serve` prints."
            )
        short = [
            choice
            for choice in answer["choices"]
            if choice["finish_reason"] == "length" and len(choice["token_ids"]) < sampling.max_new_tokens
        ]
        if short:
            raise ConfigError(
                f"{self.server} cut a completion off after {len(short[0]['token_ids'])} of {sampling.max_new_tokens} tokens: its context is too short "
                f"for a prompt of {len(ours):,}; start it with a larger --max-model-len."
            )
        device = prompt.ids_P.device
        return [
            Generation(
                torch.tensor(choice["token_ids"], dtype=torch.long, device=device),
                torch.tensor([token["logprob"] for token in choice["logprobs"]["content"]], dtype=torch.float32, device=device),
                truncated=choice["finish_reason"] == "length",
            )
            for choice in sorted(answer["choices"], key=lambda choice: choice["index"])
        ]

    # ---- adapters ------------------------------------------------------------------------------------------------

    def load(self, backbone: Backbone, name: str) -> None:
        """Write the backbone's adapter, and let the server load it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        backbone.save_adapter(self.folder / name)
        self._hand_over(name, "it is to get the adapter", adapter=True)

    def _hand_over(self, name: str, why: str, *, adapter: bool) -> None:
        """Wait for the server, and let it load an adapter; the model itself it has.

        Raises:
            TrainingError: the adapter's folder is gone.
        """
        if adapter and not (self.folder / name).is_dir():
            raise TrainingError(f"the adapter {self.folder / name} is gone; rollout.adapter_folder has to be seen by every process.")
        for _ in range(_LOSSES + 1):
            self.server.wait_until_ready(self.wait, why)
            try:
                if adapter:
                    self.server.load_adapter(name, str(self.folder / name))
                return
            except ServerLostError as cause:
                log.warning("%s was lost while it loaded an adapter (%s).", self.server, cause)
        raise TrainingError(f"{self.server} was lost {_LOSSES + 1} times while it loaded an adapter.")

    def unload(self, name: str) -> None:
        """Let the server go of an adapter, and remove it."""
        self.server.unload_adapter(name)
        shutil.rmtree(self.folder / name, ignore_errors=True)


def _refuse_others(backbone: Backbone) -> None:
    """Refuse weights that train beside the adapters: the server would never get them.

    Raises:
        ConfigError: names one.
    """
    other = next((name for name, p in backbone.named_parameters() if p.requires_grad and "lora_" not in name), None)
    if other is not None:
        raise ConfigError(
            f"model.rollout is VLLMRollout and {other} trains too, which the server never gets; train adapters alone, or use HFRollout."
        )


def _sums(backbone: Backbone) -> list[int]:
    """A number for each tensor that trains, which changes with any of its bits."""
    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    trained = [p.detach() for p in backbone.parameters() if p.requires_grad]
    if not trained:
        return []
    return [int(total) for total in torch.stack([p.view(words[p.element_size()]).sum(dtype=torch.int64) for p in trained]).tolist()]
