"""Pictures of shapes: looks, backgrounds, outlines and textures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from locus_lightning.types import Box

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 42),
    "green": (40, 150, 66),
    "blue": (38, 84, 200),
    "yellow": (240, 206, 40),
    "orange": (242, 134, 30),
    "purple": (130, 58, 166),
    "white": (244, 244, 240),
    "black": (24, 24, 28),
    "pink": (240, 140, 180),
    "cyan": (50, 190, 200),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
TEXTURE_WORDS = {"plain": "plain", "stripes": "striped", "dots": "dotted", "checks": "checked"}
TEXTURES = tuple(TEXTURE_WORDS)


@dataclass(frozen=True)
class Look:
    """What an object looks like."""

    shape: str
    colour: str
    texture: str

    @property
    def label(self) -> str:
        """In words, such as "red striped circle"; without a shape its colour alone."""
        adjective = "" if self.texture == "plain" else TEXTURE_WORDS[self.texture]
        return " ".join(word for word in (self.colour, adjective, self.shape) if word)


def background(side: int, plain: bool, clutter: int, rng: np.random.Generator) -> Image.Image:
    """A grey, or a soft gradient; thin strokes on it."""
    corners = np.full((1, 1, 3), 122) if plain else rng.integers(90, 190, (2, 2, 3))
    corners = corners.astype(np.uint8)
    image = Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    starts, moves = rng.integers(0, side, (clutter, 2)), rng.integers(-side // 8, side // 8 + 1, (clutter, 2))
    inks = rng.integers(70, 210, (clutter, 3))
    for (x, y), (dx, dy), ink in zip(starts.tolist(), moves.tolist(), inks.tolist(), strict=True):
        pen.line((x, y, x + dx, y + dy), fill=tuple(ink), width=max(1, side // 96))
    return image


def paint(image: Image.Image, box: Box, look: Look) -> None:
    """Draw an object so that it touches all four sides of its box."""
    x1, y1, x2, y2 = (int(v) for v in box)
    w, h = x2 - x1, y2 - y1
    mask = Image.new("L", (w, h), 0)
    _outline(ImageDraw.Draw(mask), look.shape, w, h)
    rgb = COLOURS[look.colour]
    image.paste(_fill(w, h, rgb, look.texture), (x1, y1), mask)


def _outline(pen: ImageDraw.ImageDraw, shape: str, w: int, h: int) -> None:
    r, b = w - 1, h - 1
    if shape == "circle":
        pen.ellipse((0, 0, r, b), fill=255)
    elif shape == "square":
        pen.rectangle((0, 0, r, b), fill=255)
    elif shape == "triangle":
        pen.polygon([(r / 2, 0), (r, b), (0, b)], fill=255)
    elif shape == "diamond":
        pen.polygon([(r / 2, 0), (r, b / 2), (r / 2, b), (0, b / 2)], fill=255)
    elif shape == "cross":
        pen.rectangle((0, h // 3, r, b - h // 3), fill=255)
        pen.rectangle((w // 3, 0, r - w // 3, b), fill=255)
    else:
        pen.ellipse((0, 0, r, b), fill=255)
        pen.ellipse((w * 0.3, h * 0.3, w * 0.7, h * 0.7), fill=0)


def _fill(w: int, h: int, rgb: tuple[int, int, int], texture: str) -> Image.Image:
    if texture == "plain":
        return Image.new("RGB", (w, h), rgb)
    y, x = np.ogrid[0:h, 0:w]
    step = max(2, min(w, h) // 5)
    if texture == "stripes":
        dark = (x + y) // step % 2 == 0
    elif texture == "dots":
        dark = (x % (2 * step) - step) ** 2 + (y % (2 * step) - step) ** 2 < (step * 0.6) ** 2
    else:
        dark = (x // step + y // step) % 2 == 0
    palette = np.array([rgb, [round(c * 0.55) for c in rgb]], dtype=np.uint8)
    return Image.fromarray(palette[dark.astype(np.intp)])
