"""``locus eval``: a benchmark on one model, or on two beside one another."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from locus_lightning.backbones.open import open_model
from locus_lightning.data.synthetic.smallstar import write_smallstar
from locus_lightning.errors import ConfigError, DataError
from locus_lightning.evaluation.base import Benchmark, limited
from locus_lightning.evaluation.benchmarks import SUITES
from locus_lightning.evaluation.html import page
from locus_lightning.evaluation.lmms_eval import run_task
from locus_lightning.evaluation.paper import ROWS, Row
from locus_lightning.evaluation.runner import ANSWERS, Settings, difference, evaluate, folder_name
from locus_lightning.files import lines_of
from locus_lightning.ranks import from_all, started_together
from locus_lightning.rollout.hf import HFRollout


def eval_command(arguments: Sequence[str]) -> int:
    """Ask, score, compare; with torchrun, on several processes."""
    options = _parser().parse_args(arguments)
    with started_together() as (options.rank, options.world):
        return _eval(options)


def _eval(options: argparse.Namespace) -> int:
    if (
        any(value is not None and value < 1 for value in (options.batch_size, options.max_new_tokens, options.limit, options.number))
        or options.pictures < 0
    ):
        raise ConfigError("--batch-size, --max-new-tokens, --limit and --number are at least 1, --pictures at least 0.")
    data = options.data
    if data is None:
        if options.suite != "smallstar":
            where = SUITES[options.suite].where if options.suite in SUITES else f"{', '.join(row.folder for row in ROWS if row.folder)}"
            raise ConfigError(f"--data is missing: {options.suite} is {where}.")
        if options.rank == 0:
            made_smallstar(options.out, options.number or 200)
        data = from_all(options.out / f"smallstar-{options.number or 200}", options.world)[0]
    elif options.number:
        raise ConfigError("--number is of the smallstar that is made on the spot; with --data, --limit takes so many of each kind.")
    settings = Settings(options.max_new_tokens, options.think, options.batch_size, options.limit)
    names = [options.model, *([options.compare] if options.compare else [])]
    if options.suite == "paper":
        if options.world > 1:
            raise ConfigError("--suite paper runs in one process; evaluate the suites one by one with torchrun, or leave torchrun out.")
        tell_paper(options, names, settings)
        return 0
    results, answers = ask(names, SUITES[options.suite], data.expanduser(), options.out / options.suite, settings, options)
    if options.rank > 0:
        return 0
    folder = options.out / options.suite / folder_name(names[-1])
    gains = difference(results[0], results[1]) if len(results) == 2 else {}
    benchmark = SUITES[options.suite](data.expanduser())
    items = [item for item in limited(benchmark.load(), settings.limit) if all(item.id in result["scores"] for result in results)]
    where = folder / ("compare.html" if gains else "page.html")
    where.write_text(page(benchmark, items, results, gains, answers, options.pictures))
    if gains:
        (folder / "compare.json").write_text(json.dumps({"against": options.model, "difference": gains}, indent=1) + "\n")
    tell(options.suite, results, gains)
    print(f"answers, result.json and {where.name}: {folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:<15} {kind.where}" for name, kind in SUITES.items())
    parser = argparse.ArgumentParser(
        "locus eval",
        description="Accuracy on image + question, greedy; answers are kept as they were written, and a stopped evaluation goes on.",
        epilog=f"suites, and what lies in --data:\n{known}\n\nexample: locus eval base --compare runs/llava/version_0 --suite vstar --data vstar_bench\n"
        "on 8 GPUs: torchrun --nproc-per-node=8 -m locus_lightning eval MODEL --suite vstar --data vstar_bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a Hugging Face folder or name, an adapter's folder, a run's folder, or a .ckpt in one")
    parser.add_argument(
        "--compare", metavar="MODEL", help="a second model: differences with bootstrap intervals, pictures of wins and losses"
    )
    parser.add_argument("--suite", required=True, choices=[*SUITES, "paper"], metavar="NAME",
                        help=", ".join(SUITES) + "; or paper: all of the paper's whose files lie in folders under --data")  # fmt: skip
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the dataset's own files; smallstar is made on the spot without it")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/eval"), metavar="FOLDER", help="answers, results and pages (default runs/eval)"
    )
    parser.add_argument("--limit", type=int, help="questions of each kind at most")
    parser.add_argument("--number", type=int, help="of smallstar without --data: questions of each kind (default 200)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, help="of an answer; default: the suite's, 1,024 with --think")
    parser.add_argument("--think", action="store_true", help="append the think/answer instruction, for models trained with it")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="of the weights (default auto: bfloat16 on a GPU, float32 on a CPU)",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint; read it first")
    parser.add_argument("--lmms-eval", type=Path, metavar="PYTHON",
                        help="with --suite paper: run lmms-eval's share too, by the Python of an environment with plugins/lmms_eval")  # fmt: skip
    parser.add_argument("--pictures", type=int, default=12, help="of wins and of losses on the page (default 12)")
    return parser


def made_smallstar(out: Path, number: int) -> Path:
    """SmallStar with so many questions of each kind, in a folder under ``out``; made once, and one that was left half made again."""
    data = out / f"smallstar-{number}"
    if not data.is_dir():
        half = data.with_suffix(".part")
        shutil.rmtree(half, ignore_errors=True)
        write_smallstar(half, number)
        half.rename(data)
    return data


def ask(
    names: Sequence[str], kind: type[Benchmark], data: Path, out: Path, settings: Settings, options: argparse.Namespace
) -> tuple[list[Any], list[Any]]:
    """Every model's result, and its answers by question."""
    results, answers = [], []
    for name in names:
        folder = out / folder_name(name)
        backbone = open_model(name, options.dtype, trust_remote_code=options.trust_remote_code)
        results.append(evaluate(backbone, name, kind(data), folder, settings, HFRollout(), options.rank, options.world))
        lines = [json.loads(line) for line in list(lines_of(folder / ANSWERS))[1:]]
        answers.append({str(row["id"]): row for row in lines})
        del backbone
    return results, answers


def tell_paper(options: argparse.Namespace, names: Sequence[str], settings: Settings) -> None:
    """The paper's benchmarks that can be run here, our figures beside the paper's; what is missing, and where it is to be had."""
    table = Table(title="percent; the paper's are Qwen2.5-VL-7B's, base and trained")
    for title in ("benchmark", "paper, base", "paper, LOCUS", *names):
        table.add_column(title, overflow="fold")
    missing, report = [], {}
    for row in ROWS:
        try:
            scores = scores_of(row, options, names, settings)
        except DataError as cause:
            scores = {}
            missing.append(f"{row.label}: {cause}")
        if scores:
            report[row.label] = scores
        table.add_row(
            row.label, f"{row.base:.1f}", f"{row.trained:.1f}", *(f"{100 * scores[name]:.1f}" if scores else "" for name in names)
        )
    if not report:
        raise ConfigError(f"{options.data} holds none of {', '.join(sorted({row.folder for row in ROWS if row.folder}))}; {missing[0]}.")
    (options.out / "paper" / "paper.json").write_text(json.dumps(report, indent=1) + "\n")
    Console().print(table)
    print(*missing, sep="\n")
    print(f"paper.json: {options.out / 'paper'}")


def scores_of(row: Row, options: argparse.Namespace, names: Sequence[str], settings: Settings) -> dict[str, float]:
    """A benchmark's headline figure in [0, 1], by model.

    Raises:
        DataError: it cannot be run here, and why.
    """
    out = options.out / "paper" / (row.folder or row.task)
    if row.folder:
        if not (options.data / row.folder).is_dir():
            raise DataError(f"{options.data / row.folder} is not there; {SUITES[row.suite].where}")
        results, _ = ask(names, SUITES[row.suite], options.data / row.folder, out, settings, options)
        return {result["model"]: result["figures"]["score"] for result in results}
    if options.lmms_eval is None:
        raise DataError(f"lmms-eval's task {row.task}; it is run with --lmms-eval PYTHON")
    if row.judge and not os.environ.get(row.judge):
        raise DataError(f"lmms-eval's task {row.task} lets a model mark the answers; set {row.judge} for it")
    print(f"{row.label}: lmms-eval's {row.task}, log in {out}", flush=True)
    return {name: run_task(options.lmms_eval, name, row, out / folder_name(name), settings, options.dtype) for name in names}


def tell(suite: str, results: Sequence[dict[str, Any]], gains: dict[str, tuple[float, float, float]]) -> None:
    """Print the table."""
    table = Table(title=f"{suite}, {results[0]['questions']} questions, greedy, percent")
    table.add_column("figure")
    for result in results:
        table.add_column(str(result["model"]), justify="right", overflow="fold")
    if gains:
        table.add_column("difference, 95 %", justify="right")
    for name in results[0]["figures"]:
        cells = [f"{100 * result['figures'].get(name, float('nan')):.1f}" for result in results]
        gain = gains.get("" if name == "score" else name)
        if gains:
            cells.append(f"{100 * gain[0]:+.1f} ({100 * gain[1]:+.1f} to {100 * gain[2]:+.1f})" if gain else "")
        table.add_row(name, *cells)
    first = results[0]
    table.caption = (
        f"prompts {first['prompt_tokens']['least']:,} to {first['prompt_tokens']['most']:,} tokens; image budget {first['image_budget']}; "
        f"{sum(r['truncated'] for r in results)} answers cut off, {sum(r['unread'] for r in results)} not readable, "
        f"{len(first['malformed'])} rows left out"
    )
    Console().print(table)
    for result in results:
        if result["may_have_seen"]:
            print(result["may_have_seen"])
