"""Asking a model every question of a benchmark: batched, resumable, raw answers kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.progress import track

from locus_lightning.backbones.base import Backbone
from locus_lightning.errors import ConfigError, DataError, PictureError
from locus_lightning.evaluation.base import Benchmark, Item, Scored, limited
from locus_lightning.files import lines_of, whole
from locus_lightning.ranks import from_all
from locus_lightning.rollout.base import RolloutEngine, ask

ANSWERS, RESULT = "answers.jsonl", "result.json"
THINK = " First think inside <think></think>, then give only the answer inside <answer></answer>."
"""What models trained with that structure are told, as in the paper."""


@dataclass(frozen=True)
class Settings:
    """How a benchmark is asked.

    Args:
        max_new_tokens: of an answer; None: the benchmark's own.
        think: append the think/answer instruction.
        batch_size: questions answered together.
        limit: questions of each kind at most; None: all.
    """

    max_new_tokens: int | None = None
    think: bool = False
    batch_size: int = 8
    limit: int | None = None


def evaluate(
    backbone: Backbone,
    model: str,
    benchmark: Benchmark,
    folder: Path,
    settings: Settings,
    engine: RolloutEngine,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Any]:
    """Ask what has not been answered yet, score everything, write ``result.json``.

    Several processes share the questions out; each writes its answers to a file of its own, which the first joins to the others in the end.

    Args:
        backbone: loaded.
        model: its name, for the record.
        benchmark: what is asked.
        folder: of this evaluation; answers that lie there already, of the same model and settings, are kept.
        settings: how it is asked.
        engine: generates the answers.
        rank: of this process.
        world: processes that share this evaluation.

    Returns:
        What was written: figures, settings, pixel budget, prompt, malformed rows.

    Raises:
        DataError: the benchmark has no usable item.
        ConfigError: ``folder`` holds answers of another model, to other questions, or with other settings.
    """
    all_items = benchmark.load()
    items = limited(all_items, settings.limit)
    if not items:
        raise DataError(f"{benchmark.folder} gives no usable question of {benchmark.name} ({len(benchmark.malformed)} rows left out, such as "
                        f"{benchmark.malformed[:1]}).")  # fmt: skip
    double = len(items) - len({item.id for item in items})
    if double:
        raise DataError(f"{benchmark.folder}: {double} questions of {benchmark.name} share their id with another; is a file there twice?")
    tokens = settings.max_new_tokens or (1024 if settings.think else benchmark.max_new_tokens)
    about = {"model": model, "weights": fingerprint(backbone), "suite": benchmark.name, "data": asked(all_items), "think": settings.think,
             "max_new_tokens": tokens}  # fmt: skip
    answers = from_all(kept_answers(folder, about) if rank == 0 else {}, world)[0]
    missing = [item for item in items if item.id not in answers]
    instruction = THINK if settings.think else ""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (ANSWERS if world == 1 else f"answers.part-{rank}.jsonl")
    shown = f"{benchmark.name}, {len(missing)} of {len(items)} questions" + (f" on {world} processes" if world > 1 else "")
    batches = [missing[rank::world][i : i + settings.batch_size] for i in range(0, len(missing[rank::world]), settings.batch_size)]
    with path.open("a") as file:
        if file.tell() == 0:
            file.write(json.dumps({"about": about}) + "\n")
        for batch in track(batches, description=shown, disable=rank > 0):
            rows = _answers(backbone, engine, benchmark, _askable(benchmark, batch, backbone, instruction), tokens)
            answers |= {row["id"]: row for row in rows}
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
    if world > 1:
        noted = from_all(benchmark.malformed, world)  # every process has written its answers when this returns
        benchmark.malformed = list(dict.fromkeys(note for notes in noted for note in notes))
        answers = from_all(kept_answers(folder, about) if rank == 0 else {}, world)[0]
    answered = [item for item in items if item.id in answers]
    lost = [
        item.id for item in items if item.id not in answers and not any(n.startswith(f"question {item.id}:") for n in benchmark.malformed)
    ]
    if lost:
        raise DataError(
            f"{len(lost)} questions of {benchmark.name} have no answer, such as {lost[0]}: --out {folder} has to be seen by every process."
        )
    if not answered:
        raise DataError(f"{benchmark.folder}: no picture of {benchmark.name} can be used, such as {benchmark.malformed[-1]}.")
    return from_all(_record(backbone, benchmark, answered, answers, about, folder, instruction) if rank == 0 else {}, world)[0]  # type: ignore[no-any-return]


def _askable(benchmark: Benchmark, batch: Sequence[Item], backbone: Backbone, instruction: str) -> list[tuple[Item, Any]]:
    """Items with what is asked; those whose picture cannot be used are noted and left out."""
    asked_items = []
    for item in batch:
        try:
            asked_items.append((item, benchmark.ask(item, backbone, instruction)))
        except PictureError as cause:
            benchmark.note(f"question {item.id}", f"its picture cannot be used ({cause})")
    return asked_items


def _answers(
    backbone: Backbone, engine: RolloutEngine, benchmark: Benchmark, askable: Sequence[tuple[Item, Any]], tokens: int
) -> list[dict[str, Any]]:
    """What is kept of the model's answers."""
    answers = ask(engine, backbone, [sample for _, sample in askable], tokens, benchmark.task)
    return [
        {"id": item.id, "text": one.text, "truncated": one.generation.truncated, "prompt_tokens": len(one.prompt.ids_P)}
        for (item, _), one in zip(askable, answers, strict=True)
    ]


def _record(
    backbone: Backbone, benchmark: Benchmark, items: Sequence[Item], answers: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any],
    folder: Path, instruction: str,
) -> dict[str, Any]:  # fmt: skip
    texts = {item.id: str(answers[item.id]["text"]) for item in items}
    scored = [Scored(item, texts[item.id], *benchmark.read(item, texts[item.id], backbone)) for item in items]
    first = benchmark.ask(items[0], backbone, instruction)
    (prompt,) = backbone.encode_pixels([benchmark.task.messages(first, backbone.frame(first.image.size))])
    lengths = [int(answers[item.id]["prompt_tokens"]) for item in items]
    result = {
        **about,
        "questions": len(items),
        "figures": benchmark.figures(scored),
        "truncated": sum(bool(answers[item.id]["truncated"]) for item in items),
        "unread": sum(row.extracted is None for row in scored),
        "image_budget": {name: _plain(value) for name, value in backbone.image_budget().items()},
        "prompt_tokens": {"least": min(lengths), "most": max(lengths)},
        "prompt": prompt.text,
        "malformed": benchmark.malformed,
        "may_have_seen": overlap(str(about["model"]), backbone.remembers.get("trained_on"), benchmark),
        "scores": {row.item.id: {"score": row.score, "read": row.extracted, "kind": row.item.kind} for row in scored},
    }
    (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    return result


def overlap(model: str, trained_on: Any, benchmark: Benchmark) -> str:
    """A sentence where a model may have been trained on the pictures of a benchmark, else empty.

    Args:
        model: its name.
        trained_on: what its checkpoint remembers of its data (``CueSource.origin``).
        benchmark: which collection its pictures belong to.
    """
    if not isinstance(trained_on, Mapping) or not trained_on.get("annotations") or trained_on.get("exclude") or not benchmark.pictures_of:
        return ""
    files = ", ".join(str(file) for file in trained_on["annotations"])
    return (
        f"{model} was trained on {files} and no images were excluded: where those are COCO's, pictures of {benchmark.name} "
        f"({benchmark.pictures_of}) may be among them. Train with data.source exclude to be sure."
    )


def folder_name(model: str) -> str:
    """A model's name as a folder's."""
    return re.sub(r"[^\w.-]+", "_", model).strip("_") or "model"


def asked(items: Sequence[Item]) -> str:
    """A hash of a benchmark's questions, without their pictures. It keeps answers to other questions with the same ids apart."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.id, item.kind, item.text, item.label, dict(item.options), item.boxes]).encode())
    return digest.hexdigest()[:16]


def kept_answers(folder: Path, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Answers that a stopped evaluation left, by id; a line that was cut off is dropped.

    Raises:
        ConfigError: they are of another model, to other questions, or with other settings.
    """
    path, parts = folder / ANSWERS, sorted(folder.glob("answers.part-*.jsonl"))
    rows: list[dict[str, Any]] = []
    for source in [path, *parts]:
        lines = list(_whole_lines(source)) if source.is_file() else []
        if lines and lines[0].get("about") != dict(about):
            there, here = lines[0].get("about") or {}, dict(about)
            other = ", ".join(f"{key} {there.get(key)!r}, not {value!r}" for key, value in here.items() if there.get(key) != value)
            raise ConfigError(f"{source} holds answers with {other}; name another folder with --out, or remove that one.")
        rows += lines if not rows else lines[1:]
    if not rows:
        return {}
    with whole(path) as beside:
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for part in parts:
        part.unlink()
    return {str(row["id"]): row for row in rows[1:]}


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in lines_of(path):
        try:
            yield json.loads(line)
        except ValueError:
            return


def fingerprint(backbone: Backbone) -> str:
    """A hash of the weights that answer. It tells this checkpoint from another one of the same name.

    It is made of sums in float64 to a fixed number of places, so that the order of additions, which differs by device and threads, does not change it.
    """
    digest = hashlib.sha256()
    for name, parameter in backbone.named_parameters():
        name = name.removeprefix("model.")
        total = float(parameter.detach().sum(dtype=torch.float64))
        digest.update(f"{name} {total / parameter.numel() ** 0.5:.8f}".encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if hasattr(value, "items") or hasattr(value, "__dict__"):
        pairs = dict(value).items() if hasattr(value, "items") else vars(value).items()
        return {str(key): inner for key, inner in pairs if inner is not None}
    return value if isinstance(value, int | float | str | list) else str(value)


def difference(a: Mapping[str, Any], b: Mapping[str, Any], draws: int = 10_000) -> dict[str, tuple[float, float, float]]:
    """b's mean score less a's over the questions both answered, with a 95 % bootstrap interval: over all (``""``) and by kind.

    Questions are resampled in pairs, 10,000 times, with a fixed seed (our choice).
    """
    shared = [key for key in a["scores"] if key in b["scores"]]
    if not shared:
        raise ConfigError(f"the results of {a['model']} and {b['model']} have no question in common.")
    kinds = sorted({a["scores"][key]["kind"] for key in shared} - {""})
    gains = {}
    for kind in ["", *kinds]:
        gains[kind] = paired_bootstrap(
            [b["scores"][k]["score"] - a["scores"][k]["score"] for k in shared if kind in ("", a["scores"][k]["kind"])], draws
        )
    return gains


def mean_result(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several models' results as one, such as a training's with several seeds: the mean score of every question that all answered."""
    first = results[0]
    shared = [key for key in first["scores"] if all(key in result["scores"] for result in results)]
    scores = {k: {"kind": first["scores"][k]["kind"], "score": fmean(r["scores"][k]["score"] for r in results)} for k in shared}
    return {"model": ", ".join(result["model"] for result in results), "scores": scores}


def paired_bootstrap(gains: Sequence[float], draws: int = 10_000) -> tuple[float, float, float]:
    """Mean of the gains by question, with the ends of its 95 % bootstrap interval (see :func:`difference`)."""
    gain, random = np.array(gains, dtype=float), np.random.default_rng(0)
    means = [gain[random.integers(0, len(gain), len(gain))].mean() for _ in range(draws)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(gain.mean()), float(low), float(high)
