"""``locus``: fit, validate, test and predict through LightningCLI, and small commands beside it.

The small commands answer without importing torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from locus_lightning.errors import LocusError

_USAGE = """usage: locus COMMAND [options]

training and evaluation (every option of model, data and trainer is available: locus fit --help)
  fit        train, then write a summary             locus fit --config configs/tiny.yaml
  validate   figures on held-out cues                locus validate --config C.yaml --ckpt_path last
  test       the same on the test loader
  predict    one answer a line, as a JSON file       locus predict --config C.yaml --ckpt_path last
  preflight  one step, watched: memory, time, prompts   locus preflight --config C.yaml --card 24
  export     a run's model as a Hugging Face folder     locus export runs/llava/version_0 FOLDER
  eval       a benchmark on image + question        locus eval MODEL --suite smallstar --compare MODEL
  analyze    where a model looks                    locus analyze attention MODEL --against MODEL
  study      runs that differ in one thing each        locus study STUDY.yaml

beside them
  plugins    list reward, cue sampler and backbone plugins   locus plugins [KIND] [--check] [--json]
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


def _dispatch(arguments: list[str]) -> None:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(_USAGE)
    elif command == "--version":
        from locus_lightning import __version__

        print(f"locus-lightning {__version__}")
    elif command == "plugins":
        from locus_lightning.commands import plugins_command

        raise SystemExit(plugins_command(arguments[1:]))
    elif command == "backbones":
        from locus_lightning.commands import backbones_command

        raise SystemExit(backbones_command(arguments[1:]))
    elif command == "data":
        from locus_lightning.data_commands import data_command

        raise SystemExit(data_command(arguments[1:]))
    elif command == "preflight":
        from locus_lightning.preflight import preflight_command

        raise SystemExit(preflight_command(arguments[1:]))
    elif command == "export":
        from locus_lightning.export import export_command

        raise SystemExit(export_command(arguments[1:]))
    elif command == "eval":
        from locus_lightning.evaluate import eval_command

        raise SystemExit(eval_command(arguments[1:]))
    elif command == "analyze":
        from locus_lightning.analyze import analyze_command

        raise SystemExit(analyze_command(arguments[1:]))
    elif command == "study":
        from locus_lightning.study import study_command

        raise SystemExit(study_command(arguments[1:]))
    elif command == "smallstar":
        from locus_lightning.data_commands import smallstar_command

        raise SystemExit(smallstar_command(arguments[1:]))
    elif command == "toy":
        from locus_lightning.commands import toy_command

        raise SystemExit(toy_command(arguments[1:]))
    elif command in ("fit", "validate", "test", "predict"):
        from locus_lightning.training_cli import run

        run(arguments)
    else:
        raise LocusError(
            f"there is no command {command!r}; choose fit, validate, test, predict, preflight, export, eval, analyze, study, plugins, backbones, data, smallstar or toy (locus --help)."
        )
