"""What a data module draws from."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

from torch.utils.data import Dataset

from locus_lightning.types import Prepared, Question, Sample

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = get_args(Split)


class CueKey(NamedTuple):
    """Which sample, and in which epoch: all that a sample's randomness may depend on beside the seed."""

    epoch: int
    item: int


def evenly_spaced(length: int, count: int) -> list[int]:
    """Up to ``count`` indices from first to last, evenly: a look at data that is too long to look through."""
    return sorted({round(i * (length - 1) / max(1, count - 1)) for i in range(count)})


class Position(NamedTuple):
    """A place in the training data: ``micro_step`` of the pass ``epoch`` over the data set."""

    epoch: int
    micro_step: int


class CueBatch:
    """Samples of one micro-step. It is no list: precision plugins walk into sequences to cast tensors and refuse frozen records there.

    Args:
        samples: of the step; none while the last rollout is still being used.
        position: which micro-step this is for; None outside training.

    Attributes:
        keys: of the samples in a rollout batch, where each key has one sample.
        prepared: the samples' prompts as far as a loader's worker can make them; None where the main process does it all.
    """

    position: Position | None = None
    prepared: Sequence[Prepared] | None = None
    keys: Sequence[CueKey] = ()

    def __init__(self, samples: Iterable[Sample | tuple[Sample, ...]], position: Position | None = None) -> None:
        self.position = position
        flat = (sample if isinstance(sample, tuple) else (sample,) for sample in samples)
        self._samples: tuple[Any, ...] = tuple(itertools.chain.from_iterable(flat))

    def __len__(self) -> int:
        """Samples."""
        return len(self._samples)

    def __iter__(self) -> Iterator[Any]:
        """The samples in order: cue samples in reinforcement, plain questions among them in supervised training."""
        return iter(self._samples)


class CueDataset(Dataset[Any], ABC):
    """A map from :class:`CueKey` to samples, the same in every worker process."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, key: CueKey) -> Any:
        """The sample of a key, or a tuple of samples that belong together; a corrupt image is replaced by the next one and noted on the sample."""

    def cue_share(self, item: int) -> float | None:
        """The share of its image's area that the cue of an item takes, where it is known without opening or drawing the image."""
        return None


class CueSource(ABC):
    """Where cue samples come from. Constructing one is free; :meth:`check` finds what the user got wrong."""

    def check(self) -> None:  # noqa: B027 - nothing to check is the normal case
        """Look before anything heavy starts.

        Raises:
            DataError: files are missing or malformed.
        """

    @abstractmethod
    def dataset(self, split: Split, seed: int) -> CueDataset:
        """The training or validation samples; disjoint by image."""

    def origin(self) -> dict[str, Any]:
        """Where the pictures come from, kept in checkpoints so that an evaluation can say what the model may have seen: ``annotations``, the names
        of the annotation files, and ``exclude``, the list of images that were left out. Empty where neither applies."""
        return {}

    def summary(self) -> dict[str, object]:
        """Facts about the data for the run's summary: counts, what was left out."""
        return {}


def few_samples(dataset: CueDataset, count: int) -> list[Any]:
    """Up to ``count`` samples of a data set, from all over it; plain questions are left out."""
    items = (dataset[CueKey(0, i)] for i in evenly_spaced(len(dataset), count))
    return [one for item in items for one in (item if isinstance(item, tuple) else (item,)) if not isinstance(one, Question)]
