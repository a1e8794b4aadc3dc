"""Is a cue worth asking for? Options of the data, off by default (our decision 10)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from locus_lightning.boxes import pairwise_iou
from locus_lightning.types import Box, IntBox

_SIDE = 160
"""Longer side, in pixels, at which a cue is looked for elsewhere in its image."""


def texture(image: Image.Image, window: IntBox) -> float:
    """Standard deviation of the grey levels (0-255) inside a window: near 0 for sky or a wall."""
    return float(np.asarray(image.crop(window).convert("L"), dtype=np.float32).std())


def second_match(image: Image.Image, window: IntBox) -> float:
    """How well the cue matches its image anywhere else: the largest normalised cross-correlation, in [-1, 1], of the grey
    cue with windows of its size that overlap the true one by IoU below 0.3; -1 where there is no such window or no texture."""
    scale = min(1.0, _SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    grey = torch.from_numpy(np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), dtype=np.float32))
    x1, y1, x2, y2 = (round(v * scale) for v in window)
    w, h = max(2, x2 - x1), max(2, y2 - y1)
    x1, y1 = min(x1, size[0] - w), min(y1, size[1] - h)
    if min(x1, y1) < 0:
        return -1.0
    template = grey[y1 : y1 + h, x1 : x1 + w]
    template = template - template.mean()
    norm = float(template.norm())
    if norm < 1e-3:
        return -1.0
    pixels, ones = grey[None, None], torch.ones(1, 1, h, w)
    total, squares = F.conv2d(pixels, ones)[0, 0], F.conv2d(pixels.square(), ones)[0, 0]
    deviation = (squares - total.square() / (w * h)).clamp_min(1e-3).sqrt()
    similarity = F.conv2d(pixels, template[None, None])[0, 0] / (deviation * norm)
    rows, columns = torch.meshgrid(torch.arange(similarity.shape[0]), torch.arange(similarity.shape[1]), indexing="ij")
    places = torch.stack([columns, rows, columns + w, rows + h], dim=-1).reshape(-1, 4)
    boxes: list[Box] = [(float(a), float(b), float(c), float(d)) for a, b, c, d in places.tolist()]
    elsewhere = pairwise_iou([(float(x1), float(y1), float(x1 + w), float(y1 + h))], boxes)[0] < 0.3
    return float(similarity.flatten()[elsewhere].max()) if bool(elsewhere.any()) else -1.0
