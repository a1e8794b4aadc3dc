"""The contract suite as a table, one row a test, one column a family; and how many inputs the frame and parser fuzzers tried.

uv run python benchmarks/contract_matrix.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["tests/unit/backbones"]


def main() -> None:
    """Run the suite, print the table."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS, f"--junitxml={report}"], cwd=ROOT, check=False, capture_output=True)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
        families: dict[str, None] = {}
        sys.path.insert(0, str(ROOT))
        from tests.conftest import FAMILIES

        for case in cases:
            name, _, rest = case.attrib["name"].partition("[")
            family = next((f for f in sorted(FAMILIES, key=len, reverse=True) if re.search(rf"(^|-){f}(-|\]|$)", rest)), None)
            if family:
                families[family] = None
                found[name][family].append(case.find("failure") is None and case.find("error") is None)
    columns = [f for f in FAMILIES if f in families]
    print("| contract | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name, row in found.items():
        if len(row) < len(columns) // 2:
            continue
        cells = [f"{sum(row[f])}/{len(row[f])}" if row.get(f) else "-" for f in columns]
        print(f"| {name.removeprefix('test_').replace('_', ' ')} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
