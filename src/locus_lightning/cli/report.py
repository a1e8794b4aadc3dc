"""``locus report``: a page about a run, or about several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from locus_lightning.study.run_page import PAGE, write_page


def report_command(arguments: Sequence[str]) -> int:
    """Write it."""
    parser = argparse.ArgumentParser(
        "locus report",
        description="Write one HTML page about a run: held-out figures before and after, curves, pictures, completions, seconds by phase, "
        "settings and versions. Several runs stand side by side. A run that has not ended is shown as far as it is.",
        epilog="example: locus report runs/tiny/version_0 runs/tiny/version_1 --save both.html",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, such as runs/tiny/version_0")
    parser.add_argument("--save", type=Path, metavar="FILE", help=f"default: {PAGE} in the folder of the only run, or here")
    options = parser.parse_args(arguments)
    target = options.save or (options.runs[0] / PAGE if len(options.runs) == 1 else Path(PAGE))
    print(write_page(options.runs, target))
    return 0
