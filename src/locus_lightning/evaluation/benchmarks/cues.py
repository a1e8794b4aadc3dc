"""Cue search on a corpus' held-out cues."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from locus_lightning.backbones.base import Backbone
from locus_lightning.boxes import clip_box
from locus_lightning.data.corpus.corpus import CorpusCues
from locus_lightning.data.source import CueKey
from locus_lightning.evaluation.base import Benchmark, Item, Scored
from locus_lightning.tasks.cue_search import CueSearch
from locus_lightning.types import CueSample


class HeldOutCues(Benchmark):
    """Cue search on a corpus' held-out cues: mean IoU, ACC@0.5 and 0.75. The one benchmark that shows a crop."""

    name = "cues"
    where = "a corpus that `locus data build` wrote"
    max_new_tokens = 256

    def load(self) -> list[Item]:
        """See :meth:`Benchmark.load`."""
        self.data = CorpusCues(str(self.folder)).dataset("val", 0)
        samples = [self.data[CueKey(0, i)] for i in range(len(self.data))]
        self.samples: dict[str, CueSample] = {sample.id: sample for sample in samples}
        return [Item(s.id, s.cue.window.size_bin, b"", "", "", boxes=(s.box,)) for s in samples]

    def ask(self, item: Item, backbone: Backbone, instruction: str) -> CueSample:
        """Scene and crop, in the words that the model was trained with."""
        self.task = CueSearch()
        self.task.adopt(backbone.remembers)
        return self.samples[item.id]

    def read(self, item: Item, text: str, backbone: Backbone) -> tuple[str | None, float]:
        """See :meth:`Benchmark.read`; the score is the IoU."""
        sample = self.samples[item.id]
        completion = CueSearch().complete(text, sample, backbone.frame(sample.image.size))
        return (
            None if completion.box is None else str([round(v, 1) for v in clip_box(completion.box, sample.image.size)])
        ), completion.score

    def figures(self, rows: Sequence[Scored]) -> dict[str, float]:
        """See :meth:`Benchmark.figures`."""
        shares = {f"acc{t}": mean(float(row.score >= t) for row in rows) for t in (0.5, 0.75)}
        return {**super().figures(rows), **shares, "parse_rate": mean(row.extracted is not None for row in rows)}
