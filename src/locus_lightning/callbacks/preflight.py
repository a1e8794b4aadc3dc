"""What a run would cost and show, measured while ``fit`` takes one step."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from locus_lightning.callbacks.gauge import Gauge, bytes_of, quantisation_bytes
from locus_lightning.data.source import CueBatch, evenly_spaced
from locus_lightning.errors import ConfigError
from locus_lightning.rollout.hf import HFRollout, copied_bytes
from locus_lightning.tasks.parsing import without_opened
from locus_lightning.tasks.pictures import contact_sheet
from locus_lightning.training import memory
from locus_lightning.training.base import TaskModule, TrainingCallback
from locus_lightning.training.grpo import LocusModule
from locus_lightning.types import Prompt, Question, RolloutGroup

_PROBED = 32
"""Training samples among which the longest prompts are looked for."""
_MULTIPLIED = {
    "merged": "copies of the weights with the adapters added",
    "dequantized": "copies of the 4-bit weights",
    None: "the 4-bit weights themselves",
}


class PreflightCallback(TrainingCallback):
    """Observes while ``fit`` takes two rollout batches: the first sets libraries up and is not measured, the second is like all others.

    Args:
        samples: how many to show.
        card: GiB to compare with; None: this GPU's.
        folder: for ``samples.png`` and ``report.json``.

    Attributes:
        max_steps: optimiser steps of the run that is being looked at.
        limit_val_batches: its bound on validation.
    """

    def __init__(self, samples: int, card: float | None, folder: Path) -> None:
        self.samples, self.folder, self.max_steps, self.limit_val_batches = samples, folder, -1, 1.0
        self.card = card or (torch.cuda.get_device_properties(0).total_memory / memory.GIB if torch.cuda.is_available() else None)
        self.module: TaskModule
        self.prompt: Prompt
        self.report: dict[str, Any] = {}
        self.too_big = False
        self._console = Console()
        self._measured: dict[str, int] = {}
        self._gauge: Gauge | None = None
        self._updates = 1  # optimiser steps of a rollout batch

    # ---- before the step ------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Weights are loaded: report on them, on the data and on a few samples; then train on the longest prompts."""
        if not isinstance(pl_module, TaskModule):
            raise ConfigError(f"locus preflight knows the training modules of locus; {type(pl_module).__name__} is none.")
        self.module, backbone, data = pl_module, pl_module.backbone, trainer.datamodule  # type: ignore[attr-defined]
        if self.card and isinstance(pl_module.rollout, HFRollout):
            pl_module.rollout.card = self.card * memory.GIB
        self._report_model()
        self._console.print(f"data: {len(data.datasets['train']):,} training samples, {len(data.datasets['val']):,} held out")
        probed = memory.longest_prompts(pl_module, _PROBED)
        if not probed:
            raise ConfigError("locus preflight shows samples of the task, and the training data has none among those probed.")
        by_index = sorted(probed, key=lambda row: row[1])
        self._report_samples([by_index[k][2] for k in evenly_spaced(len(by_index), self.samples)])
        (self.prompt,) = backbone.encode_pixels(pl_module.contents([probed[0][2]]))
        self._console.print(f"prompts: {probed[-1][0]:,} to {probed[0][0]:,} tokens among {len(probed)} probed")
        data.restrict([i for _, i, _ in probed[: max(1, len(probed) // 4)]])
        if isinstance(pl_module, LocusModule):
            pl_module.run_to_the_limit()
            self._updates = pl_module.plan().updates(data.prompts)
        trainer.fit_loop.epoch_loop.max_steps = 2 * self._updates

    def _report_model(self) -> None:
        backbone = self.module.backbone
        self._console.print(f"[bold]{backbone.checkpoint}[/bold]: {backbone.model_family()}, {type(backbone).__name__}")
        skeleton = backbone.skeleton()
        total = sum(p.numel() for p in (skeleton or backbone).parameters())
        trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        adapters = f" (adapters of rank {backbone.adapter_rank})" if backbone.adapter_rank else ""
        self.report |= {"trained_parameters": trained, "parameters": total}
        self._console.print(f"parameters: {total:,}, of which {trained:,} train{adapters}")
        if backbone.adapter_rank:
            self.report["adapters"] = dict(backbone.adapted_layers())
            self._console.print("adapters on " + ", ".join(f"{count} {name}" for name, count in sorted(self.report["adapters"].items())))
        if backbone.quantize:
            self._console.print(f"NF4: {backbone.quantised_layers()} linear layers of the language model, no others")

    def _report_samples(self, shown: Sequence[Any]) -> None:
        module, backbone = self.module, self.module.backbone
        groups, rows = [], []
        for sample, prompt in zip(shown, module.encode(shown), strict=True):
            frame, task = backbone.frame(sample.image.size), module.task_of(sample)
            target = without_opened(task.target_text(sample, frame), prompt.opened)
            completion = task.complete(backbone.decode(backbone.tokenize_answer(target)), sample, frame, prompt.opened)
            groups.append(RolloutGroup(sample, prompt, (completion,), {}, (completion.score,)))
            rows.append((sample, prompt, task.write_answer(sample, frame), completion.score))
            if not completion.well_formed:
                self._console.print(
                    f"[bold red]the right answer to {sample.id} is not well formed once it is tokenised and decoded:[/bold red] {completion.text!r}"
                )
        known = backbone.convention is None or backbone.convention.confirmed
        unit = backbone.frame(shown[0].image.size).unit
        self._console.print(f"boxes are written in {unit}" + ("" if known else " (our choice: not confirmed by the model's authors)"))
        self._console.print(f"\nprompt of {shown[0].id}, as the model reads it:", style="bold")
        self._console.print(backbone.describe_prompt(rows[0][1]), markup=False, highlight=False)
        table = Table(title="right answers, written as the model would and parsed again")
        for title in ("sample", "image", "tokens", "answer", "score"):
            table.add_column(title, overflow="fold")
        for sample, prompt, text, score in rows:
            table.add_row(sample.id, "x".join(map(str, sample.image.size)), str(len(prompt.ids_P)), text, f"{score:.2f}")
        self._console.print(table)
        self.folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(module.task, groups).save(self.folder / "samples.png")
        self._console.print(f"picture of them: {self.folder / 'samples.png'} (white: right answer; coloured: the answer parsed again)")
        self.report["samples"] = [{"id": s.id, "tokens": len(p.ids_P), "answer": t, "score": round(b, 4)} for s, p, t, b in rows]

    # ---- the step --------------------------------------------------------------------------------------------------

    def on_rollout_start(self, trainer: L.Trainer, pl_module: L.LightningModule, samples: Sequence[Any]) -> None:
        """Measure the rollout."""
        self._gauge = Gauge() if self._warm(trainer) else None

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, groups: Sequence[Any]) -> None:
        """The rollout is over; measure the update."""
        if self._gauge is not None:
            self._measured["rollout"], self._gauge = self._gauge.stop(), Gauge()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock, with the second rollout batch."""
        if self._warm(trainer) and not hasattr(self, "_started"):
            self._started = perf_counter()
            if not isinstance(pl_module, LocusModule):
                self._gauge = Gauge()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop it when the optimiser has taken the steps of that rollout batch."""
        if trainer.global_step == 2 * self._updates and self._gauge is not None:
            self._measured["update"], self._gauge = self._gauge.stop(), None
            spent = perf_counter() - self._started
            known = {name: value for name, value in getattr(pl_module, "seconds", {}).items() if name != "update"}
            self.phases = {**known, "update": spent - sum(known.values())}
            self.seconds = spent / self._updates
            states = [v for optimizer in trainer.optimizers for state in optimizer.state.values() for v in state.values()]
            self._measured["optimiser"] = sum(v.numel() * v.element_size() for v in states if isinstance(v, torch.Tensor))

    def _warm(self, trainer: L.Trainer) -> bool:
        return trainer.global_step >= self._updates

    def verdict(self) -> None:
        """Memory by component against the card, seconds a step, time for the run."""
        backbone = self.module.backbone
        computed = memory.estimate_memory(self.module, self.prompt)
        guess = defaultdict(float, computed or {})
        reference_only = {n for n, _ in backbone.named_parameters() if n.startswith("reference.")}
        own = {n: p for n, p in backbone.named_parameters() if n not in reference_only}
        weights = bytes_of(p for n, p in own.items() if "lora_" not in n) + quantisation_bytes(backbone)
        adapters = bytes_of(p for n, p in own.items() if "lora_" in n)
        reference = bytes_of(p for n, p in backbone.named_parameters() if n in reference_only)
        optimiser = self._measured["optimiser"]
        update = max(0, self._measured["update"] - optimiser)
        resident = weights + adapters + reference + optimiser
        rollout = guess["features"] + max(guess["tower"], guess["decoding"], guess["scoring"])
        rows: list[tuple[str, float, float | None]] = [
            ("weights", guess["weights"], weights),
            ("adapters", guess["adapters"], adapters),
            ("reference copy", guess["reference"], reference),
            ("optimiser", guess["optimiser"], optimiser),
            ("rollout: vision tower", guess["tower"], None),
            *([("rollout: copies of weights", guess["copies"], None)] if guess["copies"] else []),
            ("rollout: prompts' pass", guess["prefill"], None),
            ("rollout: cache", guess["cache"], None),
            ("rollout: sampling", guess["sampling"], None),
            ("rollout: log-probabilities", guess["scoring"], None),
            ("rollout: features kept", guess["features"], None),
            ("rollout, the largest", rollout, self._measured.get("rollout")),
            ("update: gradients", guess["gradients"], None),
            ("update: activations", guess["activations"], None),
            ("update: logits", guess["logits"], None),
            ("update together", guess["gradients"] + guess["activations"] + guess["logits"], update),
            ("peak", guess["peak"], resident + max(update, self._measured.get("rollout", 0))),
        ]
        unit, scale = memory.in_unit(guess["peak"])
        table = Table(title=f"memory, {unit}" + ("" if torch.cuda.is_available() else " (CPU)"))
        for title in ("component", "computed", "measured"):
            table.add_column(title, justify="left" if title == "component" else "right")
        for name, stated, measured in rows:
            style = "bold" if name in ("peak", "rollout, the largest", "update together") else None
            table.add_row(
                name, f"{stated / scale:.2f}" if computed else "", "" if measured is None else f"{measured / scale:.2f}", style=style
            )
        if self.card:
            table.add_row("card", f"{self.card * memory.GIB / scale:.1f}", "", style="bold")
        self._console.print(table)
        self._tell_at_once()
        self.report["memory_bytes"] = {name: {"computed": round(stated), "measured": measured} for name, stated, measured in rows}
        self._tell_time()
        peak = rows[-1][2] or 0.0
        self.too_big = bool(self.card and peak > self.card * memory.GIB)
        if self.card:
            room = self.card - peak / memory.GIB
            self._console.print(
                f"It fits the card with {room:.1f} GiB to spare; CUDA itself takes about one." if not self.too_big
                else f"It does not fit: {-room:.1f} GiB too much. Lower rollout.prompts_at_once, micro_batch_size, max_new_tokens or the images' "
                "resolution; or set quantize: nf4, gradient_checkpointing: true."
            )  # fmt: skip
        (self.folder / "report.json").write_text(json.dumps(self.report, indent=2) + "\n")
        self._console.print(f"report: {self.folder / 'report.json'}")

    def _tell_at_once(self) -> None:
        """How many prompts are decoded together, and from which weights."""
        engine, module = self.module.rollout, self.module
        if not isinstance(engine, HFRollout) or not isinstance(module, LocusModule):
            return
        batch = module.trainer.datamodule.prompts  # type: ignore[attr-defined]
        prompts = [replace(self.prompt, ids_P=self.prompt.ids_P.to(module.device))] * batch
        asked = (module.backbone, prompts, module.group_size, module.sampling)
        copies = engine.copies(*asked)
        at_once = engine.prompts_at_once  # what is asked for is done, with copies or without
        if at_once == "auto":
            at_once = max(1, engine.at_once(*asked, copies=copied_bytes(module.backbone, copies)))
        at_once = min(batch, at_once)
        self.report["prompts_at_once"] = at_once
        self._console.print(f"decoded together: {at_once} of the {batch} prompts of a rollout batch")
        if module.backbone.quantize or copies:
            self.report["copies"] = copies
            self._console.print(f"decoding multiplies with {_MULTIPLIED[copies]}")

    @torch.no_grad()
    def _validation(self) -> tuple[float, int]:
        """Seconds of a validation, from its first batch, and how many the run has."""
        trainer, data, module = self.module.trainer, self.module.trainer.datamodule, self.module  # type: ignore[attr-defined]
        loader, limit = data.val_dataloader(), self.limit_val_batches
        batches = min(len(loader), limit) if isinstance(limit, int) and not isinstance(limit, bool) else int(len(loader) * limit)
        if not batches or self.max_steps < 1:
            return 0.0, 0
        interval = module.stated_geometry()[2]
        if not isinstance(interval, int):
            passes = len(data.train_dataloader()) / trainer.accumulate_grad_batches
            interval = max(1, round((interval or 1.0) * passes * (trainer.check_val_every_n_epoch or 1)))
        first = next(iter(loader))
        started = perf_counter()
        module.answer(CueBatch([sample for sample in first if not isinstance(sample, Question)]))
        return (perf_counter() - started) * batches, self.max_steps // interval + 1  # one before training

    def _tell_time(self) -> None:
        phases = ", ".join(f"{name} {value:.1f} s" for name, value in self.phases.items())
        line = f"time: {self.seconds:.1f} s for an optimiser step" + (f" ({phases})" if phases else "")
        validation, times = self._validation()
        if self.max_steps and self.max_steps > 0:
            line += f"; {_hours(self.seconds * self.max_steps + validation * times)} for {self.max_steps:,} steps"
            line += f" with {times} validation{'s' * (times > 1)} of {_hours(validation)}" if times else ", without validation"
        self._console.print(line + ". Completions ran to their limit; yours will often end sooner.")
        self.report |= {
            "seconds_a_step": round(self.seconds, 3),
            "steps": self.max_steps,
            "seconds_a_validation": round(validation, 3),
            "validations": times,
            "phases": {k: round(v, 3) for k, v in self.phases.items()},
        }


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
