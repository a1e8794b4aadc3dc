"""One HTML page of an evaluation: figures, and pictures of what was won and lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import ImageDraw

from locus_lightning.data.images import data_url
from locus_lightning.evaluation.base import Benchmark, Item
from locus_lightning.files import render


def page(benchmark: Benchmark, items: Sequence[Item], results: Sequence[Mapping[str, Any]], gains: Mapping[str, tuple[float, float, float]],
         answers: Sequence[Mapping[str, Mapping[str, Any]]], pictures: int) -> str:  # fmt: skip
    """The page as one file, pictures inside, with everything escaped that models and files say."""
    rows = []
    for name in results[0]["figures"]:
        gain = gains.get("" if name == "score" else name)
        tail = f"{100 * gain[0]:+.1f} ({100 * gain[1]:+.1f} to {100 * gain[2]:+.1f})" if gain else ""
        rows.append([name, *(f"{100 * result['figures'].get(name, float('nan')):.1f}" for result in results), *([tail] if gains else [])])
    sections = [
        (title, len(chosen), [_card(item, results, answers) for item in chosen[:pictures]]) for title, chosen in _groups(items, results)
    ]
    return render("evaluation.html", benchmark=benchmark, results=results, gains=gains, rows=rows, sections=sections)


def _groups(items: Sequence[Item], results: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Item]]]:
    def score(item: Item, k: int) -> float:
        return float(results[k]["scores"][item.id]["score"])

    if len(results) == 1:
        return [("Wrong", [i for i in items if score(i, 0) < 0.5]), ("Right", [i for i in items if score(i, 0) >= 0.5])]
    won = [i for i in items if score(i, 1) >= 0.5 > score(i, 0)]
    lost = [i for i in items if score(i, 0) >= 0.5 > score(i, 1)]
    return [("Won", won), ("Lost", lost), ("Both wrong", [i for i in items if max(score(i, 0), score(i, 1)) < 0.5])]


def _card(item: Item, results: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What the page shows of one question."""
    shown = [
        (result["model"], str(rows[item.id]["text"])[:300], result["scores"][item.id]["score"] >= 0.5)
        for result, rows in zip(results, answers, strict=True)
    ]
    return {"picture": _picture(item), "question": item.text, "right": item.label or str(item.boxes), "answers": shown}


def _picture(item: Item) -> str:
    """The question's picture as a data URL, its boxes drawn in; empty where it has none."""
    if not item.image:
        return ""
    image = item.picture()
    pen = ImageDraw.Draw(image)
    for box in item.boxes:
        pen.rectangle(box, outline=(53, 199, 89), width=max(2, image.width // 300))
    image.thumbnail((480, 480))
    return data_url(image, quality=80)
