"""``locus``: fit, validate, test and predict through LightningCLI, and small commands beside it.

The small commands answer without importing torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from locus_lightning.errors import LocusError

_USAGE = """usage: locus COMMAND [options]

training and evaluation (every option of model, data and trainer is available: locus fit --help)
  fit        train, then write a summary             locus fit --config configs/tiny.yaml
  validate   figures on held-out cues                locus validate --config C.yaml --ckpt_path last
  test       the same on the test loader
  predict    one answer a line, as a JSON file       locus predict --config C.yaml --ckpt_path last
  preflight  one step, watched: memory, time, prompts   locus preflight --config C.yaml --card 24
  serve      the line that starts vLLM for a configuration  locus serve --config C.yaml
  export     a run's model as a Hugging Face folder     locus export runs/llava/version_0 FOLDER
  eval       a benchmark on image + question        locus eval MODEL --suite smallstar --compare MODEL
  analyze    where a model looks                    locus analyze attention MODEL --against MODEL
  report     a page about a run, or several             locus report runs/tiny/version_0
  study      runs that differ in one thing each        locus study STUDY.yaml

beside them
  configs    list the configurations that come with it, copy one   locus configs copy llava.yaml
  plugins    list plugins, write a package for a new one   locus plugins [KIND] [--check] | new reward NAME
  backbones  families of models and how they write boxes     locus backbones [CHECKPOINT] [--json]
  data       build a cue corpus, look through it             locus data build | inspect | text-cues
  smallstar  write a benchmark of small things to a folder   locus smallstar FOLDER
  toy        write a toy checkpoint of a real architecture   locus toy llava FOLDER

  --version, --help
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the ``locus`` command; a user's mistake is one sentence and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(arguments)
    except LocusError as error:
        print(f"locus: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("locus: stopped" + (" before training began" if arguments[:1] == ["fit"] else ""), file=sys.stderr)
        raise SystemExit(130) from None


_SMALL = {
    "preflight": "preflight:preflight_command",
    "serve": "serve:serve_command",
    "export": "export:export_command",
    "eval": "eval:eval_command",
    "analyze": "analyze:analyze_command",
    "study": "study:study_command",
    "report": "report:report_command",
    "configs": "configs:configs_command",
    "plugins": "info:plugins_command",
    "backbones": "info:backbones_command",
    "data": "data:data_command",
    "smallstar": "data:smallstar_command",
    "toy": "info:toy_command",
}
"""Command -> module and function, which takes the arguments and returns the exit status; imported when it is asked for."""


def _look_for_files(arguments: Sequence[str]) -> None:
    """Miss a configuration file now, and not after the libraries have loaded."""
    from locus_lightning.training.config_files import locate

    for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
        named = following if flag in ("--config", "-c") else flag.partition("=")[2] if flag.startswith("--config=") else ""
        if named:
            locate(Path(named))


_TRAINING = ("fit", "validate", "test", "predict")


def _dispatch(arguments: list[str]) -> None:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(_USAGE)
    elif command == "--version":
        from locus_lightning import __version__

        print(f"locus-lightning {__version__}")
    elif command in _SMALL:
        module, _, function = _SMALL[command].partition(":")
        raise SystemExit(getattr(import_module(f"locus_lightning.cli.{module}"), function)(arguments[1:]))
    elif command in _TRAINING:
        _look_for_files(arguments)
        from locus_lightning.cli.fit import run

        run(arguments)
    else:
        raise LocusError(f"there is no command {command!r}; choose {', '.join([*_TRAINING, *_SMALL])} (locus --help).")
