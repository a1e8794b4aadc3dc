"""One HTML page of an evaluation: figures, and pictures of what was won and lost."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import ImageDraw

from locus_lightning.evaluation.base import Benchmark, Item

_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1100px;color:#222;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:1rem}
.card{border:1px solid #ddd;border-radius:8px;padding:.8rem}.card img{width:100%;border-radius:4px}.right{color:#17803d}.wrong{color:#b3261e}
pre{white-space:pre-wrap;background:#f6f6f6;padding:.6rem;border-radius:4px;font-size:12px}"""


def page(benchmark: Benchmark, items: Sequence[Item], results: Sequence[Mapping[str, Any]], gains: Mapping[str, tuple[float, float, float]],
         answers: Sequence[Mapping[str, Mapping[str, Any]]], pictures: int) -> str:  # fmt: skip
    """The page as one file, pictures inside."""
    names = [str(result["model"]) for result in results]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names) + ("<th>difference, 95 %</th>" if gains else "")
    rows = []
    for name in results[0]["figures"]:
        cells = "".join(f"<td>{100 * result['figures'].get(name, float('nan')):.1f}</td>" for result in results)
        gain = gains.get("" if name == "score" else name)
        tail = f"<td>{100 * gain[0]:+.1f} ({100 * gain[1]:+.1f} to {100 * gain[2]:+.1f})</td>" if gain else "<td></td>" if gains else ""
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}{tail}</tr>")
    sections = []
    for title, chosen in _groups(items, results):
        cards = "".join(_card(item, results, answers) for item in chosen[:pictures])
        sections.append(f"<h2>{title}: {len(chosen)}</h2><div class=cards>{cards}</div>")
    about = "".join(
        f"<h3>{html.escape(name)}</h3><p>{result['questions']} questions; prompts of {result['prompt_tokens']['least']} to "
        f"{result['prompt_tokens']['most']} tokens; image budget {html.escape(str(result['image_budget']))}; {result['truncated']} answers cut off at "
        f"{result['max_new_tokens']} tokens, {result['unread']} not readable.</p><pre>{html.escape(str(result['prompt']))}</pre>"
        for name, result in zip(names, results, strict=True)
    )
    left_out = "".join(f"<li>{html.escape(row)}</li>" for row in benchmark.malformed[:50])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{benchmark.name}</title><style>{_STYLE}</style><h1>{benchmark.name}</h1>"
        f"<table><tr><th>percent</th>{head}</tr>{''.join(rows)}</table>{''.join(sections)}<h2>How it was asked</h2>{about}"
        + (f"<h2>Rows left out: {len(benchmark.malformed)}</h2><ul>{left_out}</ul>" if left_out else "")
        + "</html>\n"
    )


def _groups(items: Sequence[Item], results: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Item]]]:
    def score(item: Item, k: int) -> float:
        return float(results[k]["scores"][item.id]["score"])

    if len(results) == 1:
        return [("Wrong", [i for i in items if score(i, 0) < 0.5]), ("Right", [i for i in items if score(i, 0) >= 0.5])]
    won = [i for i in items if score(i, 1) >= 0.5 > score(i, 0)]
    lost = [i for i in items if score(i, 0) >= 0.5 > score(i, 1)]
    return [("Won", won), ("Lost", lost), ("Both wrong", [i for i in items if max(score(i, 0), score(i, 1)) < 0.5])]


def _card(item: Item, results: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    said = "".join(
        f"<p class={'right' if result['scores'][item.id]['score'] >= 0.5 else 'wrong'}>{html.escape(str(result['model']))}: "
        f"{html.escape(str(rows[item.id]['text'])[:300])}</p>"
        for result, rows in zip(results, answers, strict=True)
    )
    return f"<div class=card>{_picture(item)}<p>{html.escape(item.text)}</p><p>right: {html.escape(item.label or str(item.boxes))}</p>{said}</div>"


def _picture(item: Item) -> str:
    if not item.image:
        return ""
    image = item.picture()
    pen = ImageDraw.Draw(image)
    for box in item.boxes:
        pen.rectangle(box, outline=(53, 199, 89), width=max(2, image.width // 300))
    image.thumbnail((480, 480))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
