"""RefCOCO."""

from __future__ import annotations

from locus_lightning.backbones.base import Backbone
from locus_lightning.boxes import clip_box, iou
from locus_lightning.evaluation.base import Benchmark, Item, find, text_of
from locus_lightning.evaluation.tables import picture_bytes, rows_of
from locus_lightning.tasks.parsing import boxes_in, extract_answer
from locus_lightning.types import Question


class RefCOCO(Benchmark):
    """RefCOCO, RefCOCO+ and RefCOCOg: the box of an expression; ACC@0.5, every expression counts."""

    name = "refcoco"
    pictures_of = "COCO train2014"
    where = "a split of lmms-lab/RefCOCO, RefCOCOplus or RefCOCOg on the hub: its parquet files in a folder"

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`."""
        items = []
        for place, row in rows_of(self, ".parquet"):
            try:
                x, y, w, h = (float(v) for v in row["bbox"])
                if w <= 0 or h <= 0:
                    raise ValueError(f"the box {row['bbox']} is empty")
                expressions = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
                image = picture_bytes(row["image"])
                for k, words in enumerate(expressions):
                    items.append(
                        Item(f"{text_of(row, 'question_id', 'file_name')}-{k}", "", image, str(words), "", boxes=((x, y, x + w, y + h),))
                    )
            except (KeyError, ValueError, TypeError) as cause:
                self.note(place, cause)
        return items

    def ask(self, item: Item, backbone: Backbone, instruction: str) -> Question:
        """The expression, and the model's own unit."""
        return find(item.picture(), item.text, backbone, instruction)

    def read(self, item: Item, text: str, backbone: Backbone) -> tuple[str | None, float]:
        """See :meth:`Benchmark.read`; the first box counts."""
        boxes = boxes_in(extract_answer(text))
        if not boxes:
            return None, 0.0
        size = item.picture().size
        box = clip_box(backbone.frame(size).to_original(boxes[0]), size)
        return str([round(v, 1) for v in box]), float(iou(box, item.boxes[0]) >= 0.5)
