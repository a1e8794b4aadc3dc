"""``locus preflight``: what a run would do, found out before hours are spent on it.

A configuration is parsed as ``fit`` would; checkpoint, data, frames and prompts of a few samples are shown as the model sees them; then one
whole optimiser step is taken on the longest prompts, with completions that run to their limit, and memory and time are measured.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from locus_lightning.backbones import loading
from locus_lightning.backbones.hf import HFBackbone
from locus_lightning.boxes import iou
from locus_lightning.callbacks.pictures import contact_sheet
from locus_lightning.callbacks.run_report import Opening, computed, longest_prompts
from locus_lightning.cli.fit import LocusCLI, run
from locus_lightning.data.source import CueDataset, CueKey, spread
from locus_lightning.errors import ConfigError
from locus_lightning.tasks.parsing import parse_response
from locus_lightning.training import memory
from locus_lightning.training.grpo import LocusModule
from locus_lightning.types import Completion, CueSample, Prompt, RolloutGroup

_LOOKED_AT = 32
"""Training samples among which the longest prompts are looked for."""


def preflight_command(arguments: Sequence[str]) -> int:
    """Run it; 1 where the card is too small."""
    parser = argparse.ArgumentParser(
        "locus preflight",
        description="Look at checkpoint, data and prompts, take one step on the longest prompts, and tell memory and time. Everything that "
        "`locus fit` takes is taken too.",
        epilog="example: locus preflight --config configs/llava.yaml --card 24",
    )
    parser.add_argument("--config", required=True, help="as for locus fit")
    parser.add_argument("--card", type=float, metavar="GIB", help="memory to compare with; default: this GPU's, else none")
    parser.add_argument("--samples", type=int, default=5, help="samples to show (default 5)")
    parser.add_argument("--save", type=Path, default=Path("runs/preflight"), metavar="FOLDER", help="for the picture and the report")
    options, rest = parser.parse_known_args(arguments)
    if options.samples < 1:
        raise ConfigError(f"--samples is {options.samples}; it is at least 1.")
    probe = Probe(options.samples, options.card, options.save)

    class PreflightCLI(LocusCLI):
        """``fit`` for one step, watched."""

        def before_instantiate_classes(self) -> None:
            """One optimiser step, and nothing that writes."""
            super().before_instantiate_classes()
            trainer = self.config["fit"].trainer
            probe.max_steps, self.config["fit"]["cold_start"] = trainer.max_steps, None
            trainer.max_steps, trainer.max_epochs = 1, -1
            trainer.limit_val_batches, trainer.num_sanity_val_steps, trainer.logger = 0, 0, False
            trainer.enable_progress_bar = trainer.enable_model_summary = False
            self.config["fit"].checkpoints.every_n_steps = 0

        def before_fit(self) -> None:
            """All that `fit` refuses is refused here too."""
            super().before_fit()
            others = [callback for callback in self.trainer.callbacks if not isinstance(callback, Opening)]  # type: ignore[attr-defined]
            self.trainer.callbacks = [probe, *others]  # type: ignore[attr-defined]

        def after_fit(self) -> None:
            """Instead of saving a model: the verdict."""
            probe.verdict()

    run(["fit", "--config", options.config, *rest], PreflightCLI, save_config=False)
    return int(probe.too_big)


class Gauge:
    """Bytes that torch's allocator has out at the peak, above those at the start: on a GPU as CUDA counts them, else by the profiler."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")
            self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profiler.start()

    def stop(self) -> int:
        """The peak since the start."""
        if self._cuda:
            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated()) - self._before
        self._profiler.stop()
        held = peak = 0
        for event in self._profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                held += event.nbytes()  # type: ignore[union-attr]
                peak = max(peak, held)
        return peak


def allocated_peak(work: Callable[[], object]) -> int:
    """Bytes that the allocator had out at the peak of ``work``, less those before it."""
    gauge = Gauge()
    work()
    return gauge.stop()


class _Chosen(CueDataset):
    """The same few samples over and over, under the length of all."""

    def __init__(self, dataset: CueDataset, items: Sequence[int]) -> None:
        self.dataset, self.items = dataset, items

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: CueKey) -> Any:
        return self.dataset[CueKey(0, self.items[key.item % len(self.items)])]


class Probe(L.Callback):
    """Looks on while ``fit`` takes one step.

    Args:
        samples: how many to show.
        card: GiB to compare with; None: this GPU's.
        folder: for ``samples.png`` and ``report.json``.
    """

    def __init__(self, samples: int, card: float | None, folder: Path) -> None:
        self.samples, self.folder, self.max_steps = samples, folder, -1
        self.card = card or (torch.cuda.get_device_properties(0).total_memory / memory.GIB if torch.cuda.is_available() else None)
        self.report: dict[str, Any] = {}
        self.too_big = False
        self._console = Console()
        self._measured: dict[str, int] = {}
        self._gauge: Gauge | None = None

    # ---- what is looked at -----------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Weights are loaded: tell of them, of the data, of a few samples; then put the longest prompts first."""
        module, backbone = pl_module, pl_module.backbone
        if not isinstance(backbone, HFBackbone):
            raise ConfigError(f"locus preflight knows Hugging Face backbones; {type(backbone).__name__} is none.")
        data = trainer.datamodule.datasets["train"]  # type: ignore[attr-defined]
        self._tell_model(backbone)
        self._console.print(f"data: {len(data):,} training samples, {len(trainer.datamodule.datasets['val']):,} held out")  # type: ignore[attr-defined]
        found = longest_prompts(backbone, data, _LOOKED_AT)
        if not found:
            raise ConfigError("locus preflight shows cue samples, and the training data has none among those looked at.")
        by_index = sorted(found, key=lambda row: row[1])
        self._tell_samples(backbone, [by_index[k][2] for k in spread(len(by_index), self.samples)])
        (self.prompt,) = backbone.prompts([found[0][2]])
        self._console.print(f"prompts: {found[-1][0]:,} to {found[0][0]:,} tokens among {len(found)} looked at")
        trainer.datamodule.datasets["train"] = _Chosen(data, [i for _, i, _ in found[: max(1, len(found) // 4)]])  # type: ignore[attr-defined]
        self._watch(module)

    def _tell_model(self, backbone: HFBackbone) -> None:
        self._console.print(f"[bold]{backbone.checkpoint}[/bold]: {backbone.hf.config.model_type}, {type(backbone).__name__}")
        trained, every = (
            sum(p.numel() for p in backbone.model.parameters() if p.requires_grad),
            sum(p.numel() for p in loading.skeleton(backbone.hf.config, backbone.trust_remote_code).parameters()),
        )
        self.report |= {"trained_parameters": trained, "parameters": every}
        self._console.print(
            f"parameters: {every:,}, of which {trained:,} train" + (f" (adapters of rank {backbone.lora.rank})" if backbone.lora else "")
        )
        if backbone.lora:
            adapted = Counter(n.rsplit(".", 1)[-1] for n, m in backbone.model.named_modules() if hasattr(m, "lora_A"))
            self._console.print("adapters on " + ", ".join(f"{count} {name}" for name, count in sorted(adapted.items())))
            self.report["adapters"] = dict(adapted)
        if backbone.quantize:
            self._console.print(f"NF4: {len(loading.quantised_linears(backbone.hf))} linear layers of the language model, no others")

    def _tell_samples(self, backbone: HFBackbone, shown: Sequence[CueSample]) -> None:
        groups, rows = [], []
        for sample, prompt in zip(shown, backbone.encode(shown), strict=True):
            text = backbone.right_answer(sample)
            read = parse_response(text).box_text
            box = None if read is None else backbone.frame(sample).to_original(read)
            completion = Completion(text, box, box is not None, truncated=False)
            groups.append(RolloutGroup(sample, prompt, (completion,), {}, (iou(box, sample.box) if box else 0.0,)))
            rows.append((sample, prompt, backbone.frame(sample).to_text(sample.box), groups[-1].rewards[0]))
        known = backbone.convention is None or backbone.convention.confirmed
        unit = backbone.frame(shown[0]).unit
        self._console.print(f"boxes are written in {unit}" + ("" if known else " (our choice: not confirmed by the model's authors)"))
        self._console.print(f"\nprompt of {shown[0].id}, as the model reads it:", style="bold")
        self._console.print(spoken(backbone, rows[0][1]), markup=False, highlight=False)
        table = Table(title="true boxes, written in the model's frame and read back")
        for title in ("sample", "image", "cue", "tokens", "box", "IoU"):
            table.add_column(title, overflow="fold")
        for sample, prompt, text, back in rows:
            size, cue = ("x".join(map(str, image.size)) for image in (sample.image, sample.cue.image))
            table.add_row(sample.id, size, cue, str(len(prompt.ids_P)), text, f"{back:.2f}")
        self._console.print(table)
        self.folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(groups).save(self.folder / "samples.png")
        self._console.print(f"picture of them: {self.folder / 'samples.png'} (white: true box; coloured: the answer read back)")
        self.report["samples"] = [{"id": s.id, "tokens": len(p.ids_P), "box_text": t, "iou_read_back": round(b, 4)} for s, p, t, b in rows]

    # ---- the step --------------------------------------------------------------------------------------------------

    def _watch(self, module: Any) -> None:
        self.module = module
        if isinstance(module, LocusModule):
            module.sampling = replace(module.sampling, min_new_tokens=module.sampling.max_new_tokens)
            collect = module.collect

            def watched(samples: Any) -> Any:
                gauge = Gauge()
                found = collect(samples)
                self._measured["rollout"] = gauge.stop()
                self._gauge = Gauge()
                return found

            module.collect = watched  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        if batch_idx == 0:
            self._started = perf_counter()
            if not isinstance(pl_module, LocusModule):
                self._gauge = Gauge()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop it when the optimiser has stepped."""
        if trainer.global_step and self._gauge is not None:
            self._measured["update"], self._gauge = self._gauge.stop(), None
            self.seconds = perf_counter() - self._started
            known = {name: value for name, value in getattr(pl_module, "seconds", {}).items() if name != "update"}
            self.phases = {**known, "update": self.seconds - sum(known.values())}
            states = [v for optimizer in trainer.optimizers for state in optimizer.state.values() for v in state.values()]
            self._measured["optimiser"] = sum(v.numel() * v.element_size() for v in states if isinstance(v, torch.Tensor))

    def verdict(self) -> None:
        """Memory by component against the card, seconds a step, time for the run."""
        backbone = self.module.backbone
        found_by_sum = computed(self.module, self.prompt)
        guess = defaultdict(float, found_by_sum or {})
        weights = _bytes(p for n, p in backbone.model.named_parameters() if "lora_" not in n) + _quantisation(backbone.model)
        adapters = _bytes(p for n, p in backbone.model.named_parameters() if "lora_" in n)
        reference = 0 if backbone.reference is None else _bytes(set(backbone.reference.parameters()) - set(backbone.model.parameters()))
        optimiser = self._measured["optimiser"]
        update = max(0, self._measured["update"] - optimiser)
        resident = weights + adapters + reference + optimiser
        rows: list[tuple[str, float, float | None]] = [
            ("weights", guess["weights"], weights),
            ("adapters", guess["adapters"], adapters),
            ("reference copy", guess["reference"], reference),
            ("optimiser", guess["optimiser"], optimiser),
            ("rollout: vision tower", guess["tower"], None),
            ("rollout: cache", guess["cache"], None),
            ("rollout: sampling", guess["sampling"], None),
            ("rollout, the larger", max(guess["tower"], guess["cache"] + guess["sampling"]), self._measured.get("rollout")),
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
        for name, stated, found in rows:
            style = "bold" if name in ("peak", "rollout, the larger", "update together") else None
            table.add_row(
                name, f"{stated / scale:.2f}" if found_by_sum else "", "" if found is None else f"{found / scale:.2f}", style=style
            )
        if self.card:
            table.add_row("card", f"{self.card * memory.GIB / scale:.1f}", "", style="bold")
        self._console.print(table)
        self.report["memory_bytes"] = {name: {"computed": round(stated), "measured": found} for name, stated, found in rows}
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

    def _tell_time(self) -> None:
        phases = ", ".join(f"{name} {value:.1f} s" for name, value in self.phases.items())
        line = f"time: {self.seconds:.1f} s for an optimiser step" + (f" ({phases})" if phases else "")
        if self.max_steps and self.max_steps > 0:
            line += f"; {_hours(self.seconds * self.max_steps)} for {self.max_steps:,} steps, validation not counted"
        self._console.print(line + ". Completions ran to their limit; yours will often end sooner.")
        self.report |= {
            "seconds_a_step": round(self.seconds, 3),
            "steps": self.max_steps,
            "phases": {k: round(v, 3) for k, v in self.phases.items()},
        }


def spoken(backbone: HFBackbone, prompt: Prompt) -> str:
    """A prompt's ids as text, runs of image tokens counted."""
    images, decode = set(backbone.banned_ids), backbone.processor.tokenizer.decode
    runs = groupby(prompt.ids_P.tolist(), key=lambda i: i in images)
    return "".join(f"⟨image: {len(list(ids))} tokens⟩" if image else decode(list(ids)) for image, ids in runs)


def _bytes(parameters: Any) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _quantisation(model: Any) -> int:
    """Bytes of the scales beside 4-bit weights."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            total += sum(t.numel() * t.element_size() for t in (state.absmax, state.code) if t is not None)
            state = state.state2
    return total


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
