"""A corpus as one HTML page: statistics, and pictures with their cues for a person to look through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageDraw

from locus_lightning.data.images import data_url
from locus_lightning.data.source import CueDataset, CueKey
from locus_lightning.files import render
from locus_lightning.types import CueSample

_SHOWN = 420
"""Longest side of a picture on the page, pixels."""


def write_sheet(manifest: dict[str, Any], samples: CueDataset, out: Path, split: str, number: int, seed: int, side: int = 0) -> int:
    """Write the page, with everything escaped that files say; returns how many cues it shows.

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
    text = render(
        "corpus.html",
        title=f"{out.parent.name}: {split}",
        manifest=manifest,
        total=len(samples),
        cues=[_figure(samples[CueKey(0, i)], side) for i in chosen],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    return len(chosen)


def _figure(sample: CueSample, side: int) -> dict[str, Any]:
    """What the page shows of one cue."""
    scale = min(1.0, _SHOWN / max(sample.image.size))
    shown = sample.image.resize((round(sample.image.width * scale), round(sample.image.height * scale)))
    box = tuple(v * scale for v in sample.box)
    pen = ImageDraw.Draw(shown)
    for grow, colour in ((2, "black"), (1, "white")):
        pen.rectangle((box[0] - grow, box[1] - grow, box[2] + grow - 1, box[3] + grow - 1), outline=colour)
    window, cue = sample.cue.window, sample.cue.image
    w, h = window.box[2] - window.box[0], window.box[3] - window.box[1]
    seen_scale = min(1.0, side / max(sample.image.size)) if side else 1.0
    lines = (
        f"window {w}x{h} px",
        f"cue {cue.width}x{cue.height} px (x{window.scale:.2f})",
        f"picture {sample.image.width}x{sample.image.height}",
        f"model sees {w * seen_scale:.0f}x{h * seen_scale:.0f} of {sample.image.width * seen_scale:.0f}x{sample.image.height * seen_scale:.0f}",
        sample.id,
    )
    return {
        "picture": data_url(shown, quality=85), "crop": data_url(cue, "PNG"), "size_bin": window.size_bin, "label": window.label,
        "share": w * h / (sample.image.width * sample.image.height), "words": sample.cue.text, "lines": lines,
    }  # fmt: skip
