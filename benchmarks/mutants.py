"""Breaks the core one small piece at a time and looks whether its tests notice.

    uv run python benchmarks/mutants.py --number 100 --seed 0

A mutant is one changed operator, constant or comparison of a file below, in a copy of the sources; the tests beside the file's name run on it. A
mutant that no test notices lives: either the change does not matter, or a test is missing. Prints those, and the share that died.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("src") / "locus_lightning"
UNIT = "tests/unit"
CORE = {
    "objectives/advantages.py": f"{UNIT}/test_objectives.py {UNIT}/training/test_rollout_batch.py",
    "objectives/kl.py": f"{UNIT}/test_objectives.py",
    "objectives/policy_loss.py": f"{UNIT}/test_objectives.py",
    "objectives/grpo.py": f"{UNIT}/test_objectives.py",
    "training/rollout_batch.py": f"{UNIT}/training/test_rollout_batch.py {UNIT}/training/test_grpo.py",
    "training/grpo.py": f"{UNIT}/training/test_rollout_batch.py {UNIT}/training/test_grpo.py",
    "training/boundary.py": "tests/faults/test_signals.py tests/integration/test_cli.py -k rollout or inside_a_step or no_sample",
    "boxes.py": f"{UNIT}/test_boxes.py {UNIT}/test_cue_samplers.py {UNIT}/backbones/test_saving.py -k not quantised",
    "cue_samplers/base.py": f"{UNIT}/test_cue_samplers.py {UNIT}/test_testing.py",
    "cue_samplers/objects.py": f"{UNIT}/test_cue_samplers.py",
    "data/sampler.py": f"{UNIT}/data/test_data.py",
    "rollout/hf.py": f"{UNIT}/backbones/test_decoding.py {UNIT}/backbones/test_captured.py",
    "rollout/decoding.py": f"{UNIT}/backbones/test_decoding.py {UNIT}/backbones/test_captured.py -k not mistral and not smolvlm and not onevision",
    "backbones/adapters.py": f"{UNIT}/backbones/test_decoding.py {UNIT}/backbones/test_loading.py -k adapters or merging or trace",
    "backbones/shared_prefix/cache.py": f"{UNIT}/backbones/test_captured.py {UNIT}/backbones/test_decoding.py -k uncaptured or sampling or kept_once",
    "backbones/shared_prefix/packing.py": f"{UNIT}/backbones/test_packing.py",
    "tasks/parsing.py": f"{UNIT}/tasks",
}
"""File of the core -> the tests that are to notice; behind ``-k`` an expression of pytest's."""

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_NAMES = {
    "min": "max",
    "max": "min",
    "floor": "ceil",
    "ceil": "floor",
    "any": "all",
    "all": "any",
    "clamp_min": "clamp_max",
    "amax": "amin",
}


def mutants(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    """Every change of one node: what was changed, and the changed module."""
    same = _without_effect(tree)
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in same:
            continue
        for what, change in _changes(node):
            changed = copy.deepcopy(tree)
            change(next(other for i, other in enumerate(ast.walk(changed)) if i == number))
            yield f"line {getattr(node, 'lineno', 0)}: {what}", changed


def _without_effect(tree: ast.Module) -> set[int]:
    """Nodes whose change is no fault: whether a record is frozen, what a progress bar shows, what a clock reads."""
    nodes: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            nodes += node.decorator_list
        elif (isinstance(node, ast.keyword) and node.arg in ("prog_bar", "logger", "batch_size", "maxsplit", "strict")) or (
            isinstance(node, ast.AugAssign | ast.Assign) and "perf_counter" in ast.dump(node)
        ):
            nodes.append(node)
    return {id(inner) for node in nodes for inner in ast.walk(node)}


def _changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE:
        other = _COMPARE[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {other.__name__}", lambda n: n.ops.__setitem__(0, other())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _BINARY and not _is_type(node):
        swapped = _BINARY[type(node.op)]
        yield f"{type(node.op).__name__} -> {swapped.__name__}", lambda n: setattr(n, "op", swapped())
    elif isinstance(node, ast.BoolOp):
        turned = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} -> {turned.__name__}", lambda n: setattr(n, "op", turned())
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{node.value} -> {node.value + 1}", lambda n: setattr(n, "value", n.value + 1)
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield f"{node.value} -> {not node.value}", lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Attribute) and node.attr in _NAMES:
        yield f"{node.attr} -> {_NAMES[node.attr]}", lambda n: setattr(n, "attr", _NAMES[n.attr])
    elif isinstance(node, ast.Name) and node.id in _NAMES:
        yield f"{node.id} -> {_NAMES[node.id]}", lambda n: setattr(n, "id", _NAMES[n.id])


def _is_type(node: ast.AST) -> bool:
    """``int | None`` in an annotation changes nothing."""
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and isinstance(node.right, ast.Name | ast.Constant)


def lives(job: tuple[str, str, str, int]) -> tuple[str, str, bool]:
    """Whether the tests of a file pass on a mutant of it."""
    name, what, source, timeout = job
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder)
        for part in ("src", "tests", "configs", "plugins"):
            shutil.copytree(ROOT / part, copied / part, ignore=shutil.ignore_patterns("__pycache__", ".venv"))
        shutil.copy(ROOT / "pyproject.toml", copied)
        (copied / PACKAGE / name).write_text(source)
        tests, _, chosen = CORE[name].partition(" -k ")
        command = [sys.executable, "-m", "pytest", "-o", "addopts=-p no:cacheprovider", "-x", "-q", "-m", "not slow", *tests.split()]
        command += ["-k", chosen] if chosen else []
        environment = {**os.environ, "PYTHONPATH": str(copied / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(command, cwd=copied, env=environment, capture_output=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return name, what, False
    return name, what, done.returncode == 0


def main() -> None:
    """Draw mutants, run them, print those that live."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=240, help="seconds for the tests of a mutant; longer counts as dead")
    parser.add_argument("--only", help="one file of the core")
    options = parser.parse_args()
    jobs = []
    for name in CORE if options.only is None else [options.only]:
        tree = ast.parse((ROOT / PACKAGE / name).read_text())
        jobs += [(name, what, ast.unparse(changed), options.timeout) for what, changed in mutants(tree)]
    random.Random(options.seed).shuffle(jobs)
    alive = 0
    with ThreadPoolExecutor(options.workers) as pool:
        for count, (name, what, lived) in enumerate(pool.map(lives, jobs[: options.number]), 1):
            alive += lived
            print(f"{count:4d} {'LIVES' if lived else 'dead '} {name} {what}", flush=True)
    total = min(options.number, len(jobs))
    print(f"{total - alive} of {total} mutants died ({(total - alive) / total:.0%}); there are {len(jobs)} in all.")


if __name__ == "__main__":
    main()
