"""Boxes, IoUs, and the conversions between original pixels, a model's frame and text.

A model is trained to speak of boxes in a frame of its own: pixels of the *resized* image, thousandths,
fractions of a *square-padded* image. :class:`BoxFrame` is that convention for one image. Scores of
record are always computed in original pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from locus_lightning.types import Box, CueWindow, Size, SizeBin

SIZE_BINS: dict[SizeBin, tuple[float, float]] = {
    "tiny": (0.0, 0.01),
    "small": (0.01, 0.05),
    "medium": (0.05, 0.10),
    "large": (0.10, 1.01),
}
"""Share of the image area, half-open. Tiny and small as in the paper, section 4; large (> 10 %) as in
its cue-size ablation; medium is what lies between."""

MOST_ASPECT = 200
"""How many times as long as wide a picture or a crop may be: Qwen's processors refuse more, and we keep to it for all models (our choice)."""


def box_area(box: Box) -> float:
    """Area in square pixels; 0 where the box is empty or inverted."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def clip_box(box: Box, size: Size) -> Box:
    """``box`` cut to an image of ``size`` (width, height)."""
    w, h = size
    return (min(max(box[0], 0.0), w), min(max(box[1], 0.0), h), min(max(box[2], 0.0), w), min(max(box[3], 0.0), h))


def is_valid_box(box: Sequence[float]) -> bool:
    """Four finite numbers with x1 < x2 and y1 < y2."""
    return len(box) == 4 and all(math.isfinite(v) for v in box) and box[0] < box[2] and box[1] < box[3]


def size_bin(box: Box, size: Size) -> SizeBin:
    """The size bin of a window by its share of the image area (our decision 4: the window, not COCO's mask area)."""
    share = box_area(box) / (size[0] * size[1])
    return next(name for name, (low, high) in SIZE_BINS.items() if low <= share < high)


def _rows(boxes: Sequence[Box]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)


def pairwise_iou(a: Sequence[Box], b: Sequence[Box]) -> Tensor:
    """IoU of every box of ``a`` with every box of ``b``: float64, (len(a), len(b))."""
    return box_iou(_rows(a), _rows(b))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two valid boxes, 0 for an empty one."""
    return float(pairwise_iou([a], [b])) if is_valid_box(a) and is_valid_box(b) else 0.0


def giou(a: Box, b: Box) -> float:
    """Generalised IoU in [-1, 1] (Rezatofighi et al. 2019); -1 where either box is empty."""
    if not (is_valid_box(a) and is_valid_box(b)):
        return -1.0
    return float(generalized_box_iou(_rows([a]), _rows([b])))


def constant_boxes(size: Size) -> dict[str, Box]:
    """The constant-box baselines: the whole image, and boxes in its middle. The best of them is the floor that a model has to beat."""
    w, h = size
    centres = {f"centre {s:g}": (w * (1 - s) / 2, h * (1 - s) / 2, w * (1 + s) / 2, h * (1 + s) / 2) for s in (0.1, 0.25, 0.5)}
    return {"whole image": image_box(size), **centres}


@dataclass(frozen=True)
class BoxFrame:
    """One image's coordinate convention: ``x_model = (x + offset_x) * scale_x``, and the same in y.

    Args:
        image_size: (width, height) of the original image, pixels.
        extent: (width, height) of the frame, in the frame's units.
        scale: frame units a pixel, (x, y).
        offset: padding before the image on the left and top, original pixels.
        decimals: digits after the point in text; 0 writes whole numbers.
        unit: what the numbers are, in words for the prompt.
        y_first: the model writes y1, x1, y2, x2.
    """

    image_size: Size
    extent: tuple[float, float]
    scale: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)
    decimals: int = 0
    unit: str = "pixels"
    y_first: bool = False

    @classmethod
    def stretched(cls, image_size: Size, extent: tuple[float, float], *, decimals: int = 0, unit: str = "pixels") -> BoxFrame:
        """The image fills the frame: resized pixels, or 0-1000, or 0-1."""
        scale = (extent[0] / image_size[0], extent[1] / image_size[1])
        return cls(image_size, extent, scale, decimals=decimals, unit=unit)

    @classmethod
    def thousandths(cls, image_size: Size) -> BoxFrame:
        """0 to 1000 of the image's width and height."""
        return cls.stretched(image_size, (1000.0, 1000.0), unit="thousandths (0 to 1000) of image 1's width and height")

    @classmethod
    def fractions(cls, image_size: Size, decimals: int) -> BoxFrame:
        """0 to 1 of the image's width and height."""
        return cls.stretched(image_size, (1.0, 1.0), decimals=decimals, unit="fractions (0 to 1) of image 1")

    @classmethod
    def square_padded(cls, image_size: Size, extent: float, *, decimals: int = 0, unit: str = "pixels") -> BoxFrame:
        """The image is centred on a square of its longer side, which fills a square frame (LLaVA-1.5)."""
        side = max(image_size)
        offset = (float((side - image_size[0]) // 2), float((side - image_size[1]) // 2))
        return cls(image_size, (extent, extent), (extent / side, extent / side), offset, decimals, unit)

    @classmethod
    def padded_fractions(cls, image_size: Size, decimals: int) -> BoxFrame:
        """0 to 1 of the image centred on a square of its longer side."""
        return cls.square_padded(image_size, 1.0, decimals=decimals, unit="fractions (0 to 1) of the image padded to a square")

    @property
    def resolution(self) -> tuple[float, float]:
        """Original pixels in one step of the written number, (x, y): twice the largest rounding error."""
        step = 10.0**-self.decimals
        return (step / self.scale[0], step / self.scale[1])

    def to_model(self, box: Box) -> Box:
        """Original pixels -> the model's frame as x1, y1, x2, y2, not rounded."""
        (ox, oy), (sx, sy) = self.offset, self.scale
        return ((box[0] + ox) * sx, (box[1] + oy) * sy, (box[2] + ox) * sx, (box[3] + oy) * sy)

    def to_original(self, box_model: Sequence[float]) -> Box:
        """Four numbers in the order in which the model writes them -> original pixels, not clipped."""
        (ox, oy), (sx, sy) = self.offset, self.scale
        x1, y1, x2, y2 = (box_model[i] for i in (1, 0, 3, 2)) if self.y_first else box_model
        return (x1 / sx - ox, y1 / sy - oy, x2 / sx - ox, y2 / sy - oy)

    def to_text(self, box: Box) -> str:
        """Original pixels -> ``[x1, y1, x2, y2]``, or y first, as this frame writes it. A side that would round to nothing is the step that its
        middle lies in: no end is further off than a step."""
        x1, y1, x2, y2 = self.to_model(box)
        (x1, x2), (y1, y2) = self._written(x1, x2, self.extent[0]), self._written(y1, y2, self.extent[1])
        written = (y1, x1, y2, x2) if self.y_first else (x1, y1, x2, y2)
        return "[" + ", ".join(f"{v:.{self.decimals}f}" for v in written) + "]"

    def _written(self, low: float, high: float, extent: float) -> tuple[float, float]:
        step = 10.0**-self.decimals
        first, last = round(low, self.decimals), round(high, self.decimals)
        if first < last:
            return first, last
        first = min(math.floor((low + high) / 2 / step) * step, extent - step)
        return first, first + step


def image_box(size: Size) -> Box:
    """The box of a whole image."""
    return (0.0, 0.0, float(size[0]), float(size[1]))


def raster(rows: int, columns: int, extent: Box) -> Tensor:
    """Boxes (rows * columns, 4) of a grid's cells over ``extent``, row by row, float32."""
    x1, y1, x2, y2 = extent
    xs, ys = torch.linspace(x1, x2, columns + 1), torch.linspace(y1, y2, rows + 1)
    left, top = xs[:-1].repeat(rows), ys[:-1].repeat_interleave(columns)
    right, bottom = xs[1:].repeat(rows), ys[1:].repeat_interleave(columns)
    return torch.stack([left, top, right, bottom], dim=-1)


def crop_window(image: Image.Image, window: CueWindow) -> Image.Image:
    """Cut a window out of an image and resize it by the window's ``scale`` (bicubic, at least 1 px a side)."""
    crop = image.crop(window.box)
    if window.scale == 1.0:
        return crop
    size = (max(1, round(crop.width * window.scale)), max(1, round(crop.height * window.scale)))
    return crop.resize(size, Image.Resampling.BICUBIC)


def keep_only(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy in which all but the boxes is black; canvas and scale stay."""
    black = Image.new("RGB", image.size)
    for box in boxes:
        x1, y1, x2, y2 = (round(v) for v in clip_box(box, image.size))
        black.paste(image.crop((x1, y1, x2, y2)), (x1, y1))
    return black
