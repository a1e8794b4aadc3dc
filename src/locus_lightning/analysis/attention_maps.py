"""Attention-in-Box, Peak-in-Box and heatmaps (paper, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from locus_lightning.backbones.base import Backbone
from locus_lightning.tasks.question_answering import QuestionAnswering
from locus_lightning.types import Box, Question, Size


@dataclass(frozen=True)
class AttentionMap:
    """What one position attends to in the image.

    weights_LN  mean over heads of the attention to each image token, by layer; a row sums to the share of the image, below 1
    cells_N4    what part of the image each token stands for, original pixels; empty for tokens that stand for none
    size        (width, height) of the image
    """

    weights_LN: Tensor
    cells_N4: Tensor
    size: Size

    @property
    def average(self) -> Tensor:
        """The layer-averaged map."""
        return self.weights_LN.mean(0)

    def inside(self, boxes: Sequence[Box]) -> Tensor:
        """(N,) bool: cells that touch any of the boxes."""
        inside = torch.zeros(len(self.cells_N4), dtype=torch.bool)
        x1, y1, x2, y2 = self.cells_N4.unbind(-1)
        for left, top, right, bottom in boxes:
            inside |= (x1 < right) & (x2 > left) & (y1 < bottom) & (y2 > top) & (x2 > x1) & (y2 > y1)
        return inside

    def in_box(self, boxes: Sequence[Box]) -> tuple[float, list[float]]:
        """Attention-in-Box: the share of the image's attention that falls on cells touching the boxes.

        Of the layer-averaged map, and of every layer. The first is not the mean of the second.
        """
        inside = self.inside(boxes)
        share = self.weights_LN[:, inside].sum(-1) / self.weights_LN.sum(-1)
        mean = self.average
        return float(mean[inside].sum() / mean.sum()), share.tolist()

    def peak_in_box(self, boxes: Sequence[Box]) -> bool:
        """Whether the cell with most attention of the layer-averaged map touches a box."""
        return bool(self.inside(boxes)[self.average.argmax()])

    def heatmap(self) -> np.ndarray:
        """Attention per area of the layer-averaged map on the finest grid of its cells, (rows, columns); sums to 1."""
        real = self.cells_N4[self.cells_N4[:, 2] > self.cells_N4[:, 0]]
        finest = (real[:, 2:] - real[:, :2]).amin(0).tolist()
        columns, rows = (max(1, round(side / step)) for side, step in zip(self.size, finest, strict=True))
        scale = torch.tensor([columns / self.size[0], rows / self.size[1]] * 2)
        canvas = np.zeros((rows, columns))
        for (x1, y1, x2, y2), weight in zip((self.cells_N4 * scale).tolist(), self.average.tolist(), strict=True):
            left, top, right, bottom = (max(0, round(v)) for v in (x1, y1, x2, y2))
            area = max(0, min(right, columns) - left) * max(0, min(bottom, rows) - top)
            if area:
                canvas[top:bottom, left:right] += weight / area
        return canvas / max(canvas.sum(), 1e-12)


def attention_map(backbone: Backbone, question: Question, after: str = "") -> AttentionMap:
    """One forward pass on image + question: the attention from the position that predicts the next token.

    Args:
        backbone: loaded.
        question: an image and what is asked of it.
        after: words the answer is taken to begin with (teacher-forced), such as ``<think></think><answer>``; empty: the first generated
            token is predicted.

    Raises:
        ConfigError: the family does not say where its image tokens look.
    """
    size = question.image.size
    (prompt,) = backbone.encode_pixels([QuestionAnswering().messages(question, backbone.frame(size))])
    cells = backbone.image_cells(prompt, size)
    weights = backbone.attention(prompt, after)
    if len(cells) != weights.shape[1]:
        raise RuntimeError(f"{type(backbone).__name__}: {weights.shape[1]} image tokens and {len(cells)} cells")
    return AttentionMap(weights, cells, size)
