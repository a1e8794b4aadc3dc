"""The paper's tables of benchmarks (Qwen2.5-VL-7B), to stand beside one's own figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A benchmark of the paper.

    ``suite`` and ``folder`` say how it is run here and where its files lie under the data folder; ``task`` is lmms-eval's name of one that
    it runs, ``metric`` how its figure's name begins there, ``in_percent`` that it is no fraction, ``judge`` what must be set for the model
    that marks the answers. ``base`` and ``trained`` are the paper's percentages.
    """

    label: str
    base: float
    trained: float
    suite: str = ""
    folder: str = ""
    task: str = ""
    metric: str = ""
    in_percent: bool = False
    judge: str = ""


ROWS = (
    Row("V*Bench", 79.6, 87.4, "vstar", "vstar_bench"),
    Row("HR-Bench 4K", 69.9, 71.6, "hrbench", "hr_bench_4k"),
    Row("HR-Bench 8K", 63.8, 68.4, "hrbench", "hr_bench_8k"),
    Row("CV-Bench", 75.6, 76.5, "cvbench", "cv_bench"),
    Row("MME-RealWorld-EN", 58.8, 62.7, task="mmerealworld", metric="mme_realworld"),
    Row("POPE", 84.9, 87.6, "pope", "pope"),
    Row("HallusionBench", 68.0, 70.3, "hallusionbench", "hallusionbench"),
    Row("MMStar", 61.5, 63.1, task="mmstar", metric="average"),
    Row("RealWorldQA", 61.6, 66.4, task="realworldqa", metric="exact_match"),
    Row("OCRBench", 82.0, 85.4, task="ocrbench", metric="ocrbench_accuracy"),
    Row("AI2D", 79.6, 80.5, task="ai2d", metric="exact_match"),
    Row("BabyVision", 11.9, 12.4, task="babyvision", metric="babyvision_overall_accuracy", judge="BABYVISION_API_KEY"),
    Row("MathVision", 23.4, 24.7, task="mathvision_test", metric="mathvision_standard_eval", in_percent=True),
    Row("MathVerse", 46.1, 46.6, task="mathverse_testmini", metric="gpt_eval_score", judge="OPENAI_API_KEY"),
    Row("WeMath", 64.4, 65.1, task="wemath_testmini_reasoning", metric="acc_score"),
    Row("LogicVista", 43.1, 47.1, task="logicvista_reasoning", metric="acc_score"),
    Row("RefCOCO", 84.4, 86.5, "refcoco", "refcoco"),
    Row("RefCOCO+", 78.4, 78.8, "refcoco", "refcocoplus"),
    Row("RefCOCOg", 81.1, 83.0, "refcoco", "refcocog"),
)
