"""``locus eval``: a benchmark on one model, or on two beside one another."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from locus_lightning.data.smallstar import write_smallstar
from locus_lightning.errors import ConfigError
from locus_lightning.evaluation.page import page
from locus_lightning.evaluation.run import ANSWERS, Settings, difference, evaluate, limited
from locus_lightning.evaluation.suites import SUITES
from locus_lightning.runs import open_model


def eval_command(arguments: Sequence[str]) -> int:
    """Ask, score, compare."""
    known = "\n".join(f"  {name:<15} {kind.where}" for name, kind in SUITES.items())
    parser = argparse.ArgumentParser(
        "locus eval",
        description="Accuracy on image + question, greedy; answers are kept as they were written, and a stopped evaluation goes on.",
        epilog=f"suites, and what lies in --data:\n{known}\n\nexample: locus eval base --compare runs/llava/version_0 --suite vstar --data vstar_bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a Hugging Face folder or name, an adapter's folder, a run's folder, or a .ckpt in one")
    parser.add_argument(
        "--compare", metavar="MODEL", help="a second model: differences with bootstrap intervals, pictures of wins and losses"
    )
    parser.add_argument("--suite", required=True, choices=list(SUITES), metavar="NAME", help=", ".join(SUITES))
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the dataset's own files; smallstar is made on the spot without it")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/eval"), metavar="FOLDER", help="answers, results and pages (default runs/eval)"
    )
    parser.add_argument("--limit", type=int, help="questions of each kind at most")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, help="of an answer; default: the suite's, 1,024 with --think")
    parser.add_argument("--think", action="store_true", help="append the think/answer instruction, for models trained with it")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--pictures", type=int, default=12, help="of wins and of losses on the page (default 12)")
    options = parser.parse_args(arguments)
    if (
        any(value is not None and value < 1 for value in (options.batch_size, options.max_new_tokens, options.limit))
        or options.pictures < 0
    ):
        raise ConfigError("--batch-size, --max-new-tokens and --limit are at least 1, --pictures at least 0.")
    data = options.data
    if data is None:
        if options.suite != "smallstar":
            raise ConfigError(f"--data is missing: {options.suite} is {SUITES[options.suite].where}.")
        data = options.out / "smallstar-data"
        if not data.is_dir():
            write_smallstar(data)
    settings = Settings(options.max_new_tokens, options.think, options.batch_size, options.limit)
    results, answers = [], []
    for name in [options.model, *([options.compare] if options.compare else [])]:
        benchmark = SUITES[options.suite](data.expanduser())
        folder = options.out / options.suite / (re.sub(r"[^\w.-]+", "_", name).strip("_") or "model")
        backbone = open_model(name, options.dtype)
        results.append(evaluate(backbone, name, benchmark, folder, settings))
        lines = [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()[1:]]
        answers.append({str(row["id"]): row for row in lines})
        del backbone
    gains = difference(results[0], results[1]) if len(results) == 2 else {}
    items = limited(benchmark.load(), settings.limit)
    where = folder / ("compare.html" if gains else "page.html")
    benchmark.malformed = results[-1]["malformed"]
    where.write_text(page(benchmark, items, results, gains, answers, options.pictures))
    if gains:
        (folder / "compare.json").write_text(json.dumps({"against": options.model, "difference": gains}, indent=1) + "\n")
    tell(options.suite, results, gains)
    print(f"answers, result.json and {where.name}: {folder}")
    return 0


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
