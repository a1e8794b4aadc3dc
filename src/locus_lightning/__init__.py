"""locus-lightning: reinforcement of fine-grained perception with visual cues (LOCUS, arXiv 2606.16586)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("locus-lightning")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"
