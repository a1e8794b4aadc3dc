"""A process that Lightning has started for another rank ends with the one that started it, also while it is still starting."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

CHILD = """
import os, sys, time
from locus_lightning.cli.setup import end_with_the_launcher
end_with_the_launcher()
print(os.getpid(), flush=True)
time.sleep(60)
"""
LAUNCHER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True, env={**os.environ, **dict(p.split("=") for p in sys.argv[2:])})
print(child.stdout.readline(), end="", flush=True)
time.sleep(60)
"""


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("rank", "ends"), [("LOCAL_RANK=1", True), ("LOCAL_RANK=0", False)])
def test_a_rank_whose_launcher_was_killed_ends(rank, ends):
    launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(LAUNCHER), CHILD, rank], stdout=subprocess.PIPE, text=True)
    try:
        child = int(launcher.stdout.readline())
        launcher.kill()
        launcher.wait()
        deadline = time.monotonic() + (20 if ends else 3)
        while _alive(child) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert _alive(child) is not ends
    finally:
        launcher.kill()
        if _alive(child):
            os.kill(child, 9)
