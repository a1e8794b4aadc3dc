"""Benchmarks that run offline by rules, each read from its dataset's own files: one file a suite."""

from __future__ import annotations

from locus_lightning.evaluation.base import Benchmark
from locus_lightning.evaluation.benchmarks.cues import HeldOutCues
from locus_lightning.evaluation.benchmarks.cvbench import CVBench
from locus_lightning.evaluation.benchmarks.hallusionbench import HallusionBench
from locus_lightning.evaluation.benchmarks.hrbench import HRBench
from locus_lightning.evaluation.benchmarks.pope import POPE
from locus_lightning.evaluation.benchmarks.refcoco import RefCOCO
from locus_lightning.evaluation.benchmarks.vstar import SmallStar, VStar
from locus_lightning.evaluation.benchmarks.zoombench import ZoomBench

SUITES: dict[str, type[Benchmark]] = {
    kind.name: kind for kind in (VStar, SmallStar, HRBench, CVBench, ZoomBench, POPE, HallusionBench, RefCOCO, HeldOutCues)
}
"""Benchmarks by the name that ``locus eval --suite`` takes."""
