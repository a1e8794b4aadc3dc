"""lmms-eval asks, a backbone answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from rich.progress import track

from locus_lightning.backbones.open import open_model
from locus_lightning.evaluation.runner import THINK
from locus_lightning.rollout.base import SamplingParams
from locus_lightning.rollout.hf import HFRollout
from locus_lightning.tasks.parsing import extract_answer

READS_TAGS = "_reasoning"
"""How lmms-eval names tasks whose own extractor reads the answer block: they are handed the whole text."""


class Locus(lmms):
    """Any model that ``locus eval`` opens.

    lmms-eval's extractors look for a letter or a number and take ``<think>A or B?</think><answer>B</answer>`` for something else, so they
    are handed what stands in the answer block; every answer is kept as it was written in ``raw``.

    Args:
        pretrained: a run's folder, a ``.ckpt`` in one, an adapter's folder, a Hugging Face folder or name, or ``toy:FAMILY``.
        think: append the think/answer instruction, for models trained with it.
        dtype: of the weights.
        batch_size: questions answered together.
        max_new_tokens: of an answer; None: the task's own, but 8,192 (the paper's) with ``think``.
        raw: a file for the whole answers, one JSON object a line: task, doc_id, text, truncated.
        device: where the model lives; None: the first GPU where there is one.
    """

    def __init__(
        self,
        pretrained: str,
        think: bool = False,
        dtype: str = "float32",
        batch_size: int | str = 1,
        max_new_tokens: int | None = None,
        raw: str = "",
        device: str | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        unknown = sorted(set(ignored) - {"max_batch_size", "trust_remote_code"})  # what lmms-eval passes to every model
        if unknown:
            raise ValueError(f"--model_args {', '.join(unknown)}: model locus takes pretrained, think, dtype, max_new_tokens, raw.")
        self.backbone = open_model(str(pretrained), dtype, device)
        self.think, self.batch, self.max_new_tokens = think, int(batch_size), max_new_tokens
        self.raw = Path(raw) if raw else None

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests."""
        order = sorted(range(len(requests)), key=lambda i: str(requests[i].args[1]))  # those with the same settings together
        answers: dict[int, str] = {}
        parts: list[list[int]] = []
        for i in order:
            if parts and len(parts[-1]) < self.batch and requests[parts[-1][0]].args[1] == requests[i].args[1]:
                parts[-1].append(i)
            else:
                parts.append([i])
        for part in track(parts, description=f"{len(requests)} questions"):
            answers |= zip(part, self._answer([requests[i].args for i in part]), strict=True)
        return [answers[i] for i in range(len(requests))]

    def _answer(self, asked: Sequence[tuple[Any, ...]]) -> list[str]:
        """A batch of (context, settings, doc_to_visual, doc_id, task, split)."""
        settings = asked[0][1]
        contents = [
            (*self._images(*rest), "\n" + context.replace("<image>", "").strip() + (THINK if self.think else ""))
            for context, _, *rest in asked
        ]
        most = self.max_new_tokens or (8192 if self.think else int(settings.get("max_new_tokens", 1024)))
        sampling = SamplingParams(most, temperature=float(settings.get("temperature") or 0.0))
        prompts = self.backbone.encode(contents)
        made = HFRollout().generate(self.backbone, prompts, 1, sampling)
        answers, rows = [], []
        for (_, _, _, doc_id, task, _), prompt, (generation,) in zip(asked, prompts, made, strict=True):
            text = prompt.opened + self.backbone.decode(generation.ids_T)
            rows.append({"task": task, "doc_id": doc_id, "text": text, "truncated": generation.truncated})
            answers.append(text if task.endswith(READS_TAGS) else _until(extract_answer(text), settings.get("until")))
        if self.raw:
            self.raw.parent.mkdir(parents=True, exist_ok=True)
            with self.raw.open("a") as file:
                file.writelines(json.dumps(row, default=str) + "\n" for row in rows)
        return answers

    def _images(self, doc_to_visual: Any, doc_id: Any, task: str, split: str) -> list[Image.Image]:
        found = doc_to_visual(self.task_dict[task][split][doc_id])
        if not found or not all(isinstance(one, Image.Image) for one in found):
            raise ValueError(
                f"question {doc_id} of {task} comes without a picture, or with a video or sound: model locus answers images only."
            )
        return [one.convert("RGB") for one in found]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the paper's benchmarks are all answered in words."""
        raise NotImplementedError("model locus answers in words (output_type: generate_until); this task asks for likelihoods.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("model locus answers one question at a time; this task asks in several rounds.")


def _until(text: str, marks: str | Sequence[str] | None) -> str:
    """Cut before the first of the task's stop strings."""
    for mark in [marks] if isinstance(marks, str) else marks or []:
        if mark:
            text = text.split(mark)[0]
    return text.strip()
