"""A corpus as one HTML page: statistics, and pictures with their cues for a person to look through."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageDraw

from locus_lightning.data.index import data_url
from locus_lightning.data.source import CueDataset, CueKey
from locus_lightning.types import CueSample

_SHOWN = 420
"""Longest side of a picture on the page, pixels."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; color: #1c1e21; background: #fafafa }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; margin: .6rem 0 } td, th { padding: .2rem .8rem .2rem 0; text-align: right; font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(600px, 1fr)); gap: 14px }
figure { margin: 0; padding: 10px; background: #fff; border: 1px solid #ddd; border-radius: 6px; display: flex; gap: 12px; align-items: flex-start }
figure img { max-width: 100% } figcaption { font-size: .85rem } .cue { min-width: 120px } .cue img { width: 120px; image-rendering: pixelated; border: 1px solid #999 }
.bar { background: #3566c8; height: .7em; display: inline-block; margin-right: .4em }
.tiny { color: #b3261e } .small { color: #a15c00 } .medium { color: #1d6b36 } .large { color: #3566c8 }
"""


def write_sheet(manifest: dict[str, Any], samples: CueDataset, out: Path, split: str, number: int, seed: int, side: int = 0) -> int:
    """Write the page; returns how many cues it shows.

    Args:
        manifest: of the corpus.
        samples: the split's cues.
        out: the file.
        split: its name.
        number: most cues shown, drawn at random.
        seed: of the draw.
        side: longest side that a model sees, pixels, for the sizes in the captions; 0: as the picture is.
    """
    chosen = sorted(np.random.default_rng(seed).permutation(len(samples))[:number].tolist())
    figures = "".join(_figure(samples[CueKey(0, i)], side) for i in chosen)
    title = html.escape(f"{out.parent.name}: {split}")
    body = f"<h1>Cue corpus {title}</h1>{_facts(manifest)}<h2>{len(chosen)} of {len(samples):,} cues</h2><div class=sheet>{figures}</div>"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style><body>{body}</body></html>"
    )
    return len(chosen)


def _facts(manifest: dict[str, Any]) -> str:
    parts = []
    for split, counts in manifest["counts"].items():
        bins = "".join(
            f"<tr><td class={name}>{name}<td>{n:,}<td>{n / counts['cues']:.1%}<td style='text-align:left'>"
            f"<span class=bar style='width:{180 * n / counts['cues']:.0f}px'></span>"
            for name, n in counts["bins"].items()
        )
        statistics = dict(manifest["statistics"][split])
        labels = statistics.pop("labels")
        heads = "".join(f"<th>{q}" for q in next(iter(statistics.values())))
        rows = "".join(f"<tr><td>{name}" + "".join(f"<td>{v:g}" for v in values.values()) for name, values in statistics.items())
        most = ", ".join(f"{html.escape(name or 'no label')} {n:,}" for name, n in labels.items())
        parts.append(
            f"<h2>{split}: {counts['cues']:,} cues of {counts['images']:,} pictures</h2><table>{bins}</table>"
            f"<table><tr><th>quantile{heads}{rows}</table><p>Most frequent of {counts['labels']} labels: {most}</p>"
        )
    out = "".join(f"<tr><td>{html.escape(name)}<td>{n:,}" for name, n in manifest["left_out"].items())
    return "".join(parts) + f"<h2>Left out</h2><table>{out or '<tr><td>nothing'}</table>"


def _figure(sample: CueSample, side: int) -> str:
    scale = min(1.0, _SHOWN / max(sample.image.size))
    shown = sample.image.resize((round(sample.image.width * scale), round(sample.image.height * scale)))
    box = tuple(v * scale for v in sample.box)
    pen = ImageDraw.Draw(shown)
    for grow, colour in ((2, "black"), (1, "white")):
        pen.rectangle((box[0] - grow, box[1] - grow, box[2] + grow - 1, box[3] + grow - 1), outline=colour)
    window, cue = sample.cue.window, sample.cue.image
    w, h = window.box[2] - window.box[0], window.box[3] - window.box[1]
    seen = min(1.0, side / max(sample.image.size)) if side else 1.0
    share = w * h / (sample.image.width * sample.image.height)
    words = f"<br><i>{html.escape(sample.cue.text)}</i>" if sample.cue.text else ""
    caption = (
        f"<b class={window.size_bin}>{window.size_bin}</b> {share:.2%}<br>{html.escape(window.label)}{words}<br>window {w}x{h} px"
        f"<br>cue {cue.width}x{cue.height} px (x{window.scale:.2f})<br>picture {sample.image.width}x{sample.image.height}"
        f"<br>model sees {w * seen:.0f}x{h * seen:.0f} of {sample.image.width * seen:.0f}x{sample.image.height * seen:.0f}<br>{sample.id}"
    )
    return f"<figure><img src='{data_url(shown, quality=85)}'><div class=cue><img src='{data_url(cue, 'PNG')}'><figcaption>{caption}</figcaption></div></figure>"
