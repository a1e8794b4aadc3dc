"""The order in which training samples are used: shuffled, from large cues to small ones, or those that the model sometimes finds more often."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from locus_lightning.data.source import CueDataset, CueKey
from locus_lightning.errors import CheckpointError, ConfigError


class SampleOrder(ABC):
    """Which sample comes when. An order depends on the seed and on what it was told of earlier samples; it is the same on every process.

    Attributes:
        length: samples of the data set.
        pass_length: samples of a pass, an incomplete last batch left out.
        seed: of everything random here.
    """

    length: int
    pass_length: int
    seed: int

    def begin(self, dataset: CueDataset, seed: int, pass_length: int, ahead: int) -> None:
        """Look at the training data, before the first key is asked for.

        Args:
            dataset: as the source gives it.
            seed: of the data module.
            pass_length: samples of a pass.
            ahead: how many samples the loader may fetch before the outcomes of earlier ones are known.

        Raises:
            ConfigError: this order cannot be made of such data.
            CheckpointError: it was restored from a run on other data.
        """
        self.length, self.seed, self.pass_length = len(dataset), seed, pass_length

    @property
    def learns(self) -> bool:
        """Whether the order depends on what became of earlier samples."""
        return type(self).note is not SampleOrder.note

    @abstractmethod
    def keys(self, epoch: int, start: int, stop: int) -> list[CueKey]:
        """The keys of the samples ``start`` to ``stop`` of a pass over the data."""

    def note(self, epoch: int, start: int, outcomes: Sequence[tuple[int, Sequence[float]]]) -> None:  # noqa: B027 - most orders forget
        """What became of a rollout batch.

        Args:
            epoch: of the pass.
            start: of the batch's first sample in it.
            outcomes: of every group of all processes: the item, and the task's score of each completion.
        """

    def figures(self) -> dict[str, float]:
        """Curves, under ``order/``."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most orders have no state
        """See :meth:`state_dict`."""


class Shuffled(SampleOrder):
    """Every pass shuffles all samples (the default; as published)."""

    _of: tuple[int, np.ndarray] | None = None

    def keys(self, epoch: int, start: int, stop: int) -> list[CueKey]:
        """See :meth:`SampleOrder.keys`."""
        if self._of is None or self._of[0] != epoch:
            self._of = (epoch, self.permutation(epoch))
        return [CueKey(epoch, int(item)) for item in self._of[1][start:stop]]

    def permutation(self, epoch: int) -> np.ndarray:
        """All items in the order of a pass."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.length)


class LargeToSmall(Shuffled):
    """A curriculum over cue size: the first pass begins with the largest cues and takes smaller ones in, until all are; each is used once.

    The share of the data that is in reach after a fraction t of the curriculum is sqrt(t (1 - s^2) + s^2) with s its ``start``, the
    competence of Platanios et al. (arXiv 1903.09848).

    Args:
        start: The share of the data, its largest cues, that the run begins with.
        until: The share of the first pass at whose end all cues are in reach. Later passes are shuffled.
    """

    def __init__(self, start: float = 0.1, until: float = 0.5) -> None:
        if not (0 < start <= 1 and 0 < until <= 1):
            raise ConfigError(f"LargeToSmall: start is {start} and until {until}; both are above 0 and at most 1.")
        self.start, self.until = start, until

    def begin(self, dataset: CueDataset, seed: int, pass_length: int, ahead: int) -> None:
        """See :meth:`SampleOrder.begin`."""
        super().begin(dataset, seed, pass_length, ahead)
        shares = [dataset.cue_share(item) for item in range(len(dataset))]
        if any(share is None for share in shares):
            raise ConfigError(
                "data.order is LargeToSmall, and this source does not know how large its cues are before pictures are drawn or opened; use "
                "CocoCues or CorpusCues, or data.order: null."
            )
        self._by_size = np.argsort([-share for share in shares if share is not None], kind="stable")

    def permutation(self, epoch: int) -> np.ndarray:
        """See :meth:`Shuffled.permutation`."""
        if epoch > 0:
            return super().permutation(epoch)
        rng = np.random.default_rng([self.seed, epoch])
        steps = max(1, round(self.until * self.length))
        reached, pool, order = 0, list[int](), list[int]()
        for taken, draw in enumerate(rng.random(self.length)):
            share = np.sqrt(min(1.0, taken / steps) * (1 - self.start**2) + self.start**2)
            enough = max(int(np.ceil(share * self.length)), reached if pool else reached + 1)
            pool.extend(self._by_size[reached:enough].tolist())
            reached = enough
            chosen = int(draw * len(pool))
            pool[chosen], pool[-1] = pool[-1], pool[chosen]
            order.append(pool.pop())
        return np.array(order)


class HardCues(SampleOrder):
    """Mining by pass rate: samples whose pass rate is near ``target`` come back more often than those that always pass or never do.

    A group whose completions all pass, or all fail, teaches nothing; so the default prefers what the model gets right half the time. Samples are
    drawn in rounds without repetition. The weight falls from 1 at ``target``, and for samples that were never asked, to ``floor`` at the pass rate
    that is furthest from it. A round knows the outcomes up to the end of the last round but one, so that it does not depend on what a loader
    has fetched ahead (our choices, after the difficulty filters of DAPO, arXiv 2503.14476).

    Args:
        round: The number of samples that are drawn at once; null is a quarter of the data set.
        target: The pass rate that is preferred, from 0 (always failed) to 1.
        floor: The least weight of a sample, above 0, so that what has become easy or possible is noticed.
        threshold: The score from which an answer passes; a task's own score lies between 0 and 1 (IoU for cue search).
        memory: The weight of earlier outcomes of a sample beside a new one.
    """

    def __init__(
        self, round: int | None = None, target: float = 0.5, floor: float = 0.05, threshold: float = 0.5, memory: float = 0.5
    ) -> None:
        if round is not None and round < 1:
            raise ConfigError(f"HardCues.round is {round}; it is at least 1, or null.")
        if not (0 <= target <= 1 and 0 < floor <= 1 and 0 <= threshold <= 1 and 0 <= memory < 1):
            raise ConfigError(
                f"HardCues: target {target} and threshold {threshold} lie between 0 and 1, floor {floor} is above 0 and at most 1, memory "
                f"{memory} at least 0 and below 1."
            )
        self.round, self.target, self.floor, self.threshold, self.memory = round, target, floor, threshold, memory
        self._rates = np.zeros(0)
        self._recent: dict[int, list[tuple[int, float]]] = {}
        self._drawn: dict[int, np.ndarray] = {}

    def begin(self, dataset: CueDataset, seed: int, pass_length: int, ahead: int) -> None:
        """See :meth:`SampleOrder.begin`."""
        super().begin(dataset, seed, pass_length, ahead)
        self.size = self.round or max(1, self.length // 4)
        if not ahead <= self.size <= self.length:
            raise ConfigError(
                f"data.order HardCues.round is {self.size}; with this batch size and these workers it is at least {ahead}, which is what the "
                f"loader fetches ahead, and at most {self.length}, the number of samples."
            )
        if not len(self._rates):
            self._rates, self._restored_round = np.full(self.length, np.nan), self.size
        if len(self._rates) != self.length or self._restored_round != self.size:
            raise CheckpointError(
                f"the checkpoint's data.order is of {len(self._rates)} samples in rounds of {self._restored_round}, this run's of {self.length} "
                f"in rounds of {self.size}; set data.order.round to {self._restored_round}, and continue on the same data."
            )

    def keys(self, epoch: int, start: int, stop: int) -> list[CueKey]:
        """See :meth:`SampleOrder.keys`. A sample that comes back is the same one: its key is that of the first pass."""
        places = (epoch * self.pass_length + place for place in range(start, stop))
        return [CueKey(0, int(self._round(place // self.size)[place % self.size])) for place in places]

    def _round(self, number: int) -> np.ndarray:
        """The items of a round, drawn by weight without repetition (the Gumbel trick)."""
        if number not in self._drawn:
            rates = self._rates.copy()
            for earlier in sorted(self._recent):
                if earlier <= number - 2:
                    self._take_in(rates, self._recent[earlier])
            distance = np.abs(np.nan_to_num(rates, nan=self.target) - self.target) / max(self.target, 1 - self.target)
            weights = np.maximum(self.floor, 1 - distance)
            noise = np.random.default_rng([self.seed, number]).gumbel(size=self.length)
            self._drawn = {n: items for n, items in self._drawn.items() if n >= number - 1}
            self._drawn[number] = np.argsort(-(np.log(weights) + noise), kind="stable")[: self.size]
        return self._drawn[number]

    def _take_in(self, rates: np.ndarray, outcomes: Sequence[tuple[int, float]]) -> None:
        for item, rate in outcomes:
            rates[item] = rate if np.isnan(rates[item]) else self.memory * rates[item] + (1 - self.memory) * rate

    def note(self, epoch: int, start: int, outcomes: Sequence[tuple[int, Sequence[float]]]) -> None:
        """See :meth:`SampleOrder.note`."""
        number = (epoch * self.pass_length + start) // self.size
        rates = [(item, float(sum(score >= self.threshold for score in scores) / len(scores))) for item, scores in outcomes]
        self._recent.setdefault(number, []).extend(rates)
        for old in sorted(n for n in self._recent if n < number - 2):  # every round that is still to be drawn knows these
            self._take_in(self._rates, self._recent.pop(old))

    def figures(self) -> dict[str, float]:
        """Share of the samples that were asked; of those, their mean pass rate, and the shares that pass nearly always or never."""
        rates = self._rates.copy()
        for number in sorted(self._recent):
            self._take_in(rates, self._recent[number])
        known = rates[~np.isnan(rates)]
        if not len(known):
            return {}
        return {
            "order/asked": len(known) / self.length,
            "order/pass_rate": float(known.mean()),
            "order/easy": float((known > 0.9).mean()),
            "order/hard": float((known < 0.1).mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Pass rates, and the outcomes of rounds that are too new to count."""
        if not len(self._rates):
            return {}
        recent = {number: list(outcomes) for number, outcomes in self._recent.items()}
        return {"round": self.size, "rates": torch.from_numpy(self._rates.copy()), "recent": recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._rates, self._restored_round = state["rates"].numpy().copy(), int(state["round"])
        self._recent = {int(number): [(int(i), float(r)) for i, r in outcomes] for number, outcomes in state["recent"].items()}
        self._drawn = {}
