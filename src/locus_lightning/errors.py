"""What can go wrong, and who can mend it.

A user's mistake is a :class:`LocusError`. Its message is one sentence that names the file, the
key and the value at fault and says what to do; the command line prints it without a traceback and
exits with status 2. Everything a user can get wrong is looked for before weights are loaded.

* :class:`ConfigError`      a setting, or two settings that do not go together.
* :class:`PluginError`      a plugin that is unknown, taken twice, or fails to import.
* :class:`DataError`        an annotation file, an image folder, or what is in them.
* :class:`PictureError`     one picture, which is then left out, counted and listed.
* :class:`CheckpointError`  a model folder or a training checkpoint that cannot be used.
* :class:`TrainingError`    training that cannot go on, such as gradients that are not finite.

A mistake of ours is any other exception, and keeps its traceback. What a *model* writes is never
an error: malformed text is a low reward. A *corrupt image* is never an error either: it is put
aside, counted and listed (see ``data/``).
"""


class LocusError(Exception):
    """A mistake the user can mend; the message says how."""


class ConfigError(LocusError):
    """A setting is missing, out of range, or at odds with another."""


class PluginError(LocusError):
    """A plugin is unknown, ambiguous, or cannot be imported."""


class DataError(LocusError):
    """An annotation file or image folder is missing or malformed."""


class PictureError(DataError):
    """A picture cannot be used. Whoever reads pictures leaves it out; the message is the reason."""


class CheckpointError(LocusError):
    """A model or training checkpoint cannot be found, read or used."""


class TrainingError(LocusError):
    """Training cannot go on. What was learned until then is in the run's checkpoints."""
