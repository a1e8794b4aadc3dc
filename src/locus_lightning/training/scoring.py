"""Rewards at work: every score checked, a reward that fails or hangs named, its group left out, and the run stopped where that is no exception."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from locus_lightning.errors import PluginError
from locus_lightning.rewards.base import Reward, RewardBatch, checked_batch, checked_scores
from locus_lightning.types import RolloutGroup

log = logging.getLogger("locus_lightning")

_PATIENCE_S = 60.0
"""Seconds after which a reward that is still at work is mentioned, and again after as many."""

_FLAT_BATCHES = frozenset({5 * 2**k for k in range(20)})
"""Numbers of rollout batches in a row without a difference in reward at which it is said."""

_WINDOW = 200
"""The last groups over which the share of failures is taken."""


class Scorer:
    """Scores rollout groups with several rewards.

    Rewards run in one thread of their own, so that a reward that hangs neither silences the run nor keeps it from being stopped.

    Args:
        rewards: what scores, with weights and names.
        max_failed_groups: the share of the last 200 groups whose scoring may fail; a failed group is left out. Beyond it training stops.
        timeout_s: seconds that a reward may take for one group; None waits for ever.
    """

    def __init__(self, rewards: Sequence[Reward], max_failed_groups: float, timeout_s: float | None) -> None:
        self.rewards, self.max_failed_groups, self.timeout_s = rewards, max_failed_groups, timeout_s
        self.failed = 0
        self._flat_in_a_row = 0
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._thread = _Worker()

    def score_all(self, groups: Sequence[RolloutGroup], step: int) -> list[RolloutGroup]:
        """The groups with every reward's scores and their weighted sum, or marked as failed. Rewards that see a rollout batch whole are asked first.

        Args:
            groups: of a rollout batch.
            step: optimiser steps taken.

        Raises:
            PluginError: too many groups have failed; names the reward, the sample and the value of the last one.
        """
        batch = RewardBatch([(group.completions, group.sample) for group in groups], step)
        whole = {
            reward.name: self._of_batch(reward, batch) for reward in self.rewards if type(reward).score_batch is not Reward.score_batch
        }
        return [self._score(group, {name: results[i] for name, results in whole.items()}) for i, group in enumerate(groups)]

    def _score(self, group: RolloutGroup, known: Mapping[str, tuple[float, ...] | PluginError]) -> RolloutGroup:
        try:
            scores = {reward.name: known.get(reward.name) or self._of_group(reward, group) for reward in self.rewards}
            failed = next((value for value in scores.values() if isinstance(value, PluginError)), None)
            if failed is not None:
                raise failed
        except PluginError as cause:
            self._count(cause)
            nothing = (0.0,) * len(group.completions)
            return replace(group, scores={reward.name: nothing for reward in self.rewards}, rewards=nothing, failed=str(cause))
        self._count(None)
        values: dict[str, tuple[float, ...]] = scores  # type: ignore[assignment]
        total = tuple(sum(reward.weight * values[reward.name][g] for reward in self.rewards) for g in range(len(group.completions)))
        return replace(group, scores=values, rewards=total)

    def note_batch(self, groups: Sequence[RolloutGroup], flat: bool, step: int) -> None:
        """Say it when no group's rewards differ, batch after batch: nothing is learned then.

        Args:
            groups: of this process.
            flat: whether that is so in all groups of all processes.
            step: optimiser steps taken.
        """
        scored = [group for group in groups if not group.failed]
        self._flat_in_a_row = self._flat_in_a_row + 1 if flat else 0
        if self._flat_in_a_row not in _FLAT_BATCHES:
            return
        values = {name: {score for group in scored for score in group.scores[name]} for name in (reward.name for reward in self.rewards)}
        shown = ", ".join(
            f"{name} {'always ' + format(min(v), 'g') if len(v) == 1 else 'equal in each group'}" for name, v in values.items() if v
        )
        log.warning(
            "step %d: in %d rollout batches in a row no group had rewards that differ, so nothing is learned (%s). Look at the completions, at "
            "the reward, or raise sampling.temperature.", step, self._flat_in_a_row, shown or "no group was scored",
        )  # fmt: skip

    def _count(self, cause: PluginError | None) -> None:
        """Count a group, and what kept it from being scored."""
        self._recent.append(cause is not None)
        if cause is None:
            return
        self.failed += 1
        bad, allowed = sum(self._recent), self.max_failed_groups * max(len(self._recent), _WINDOW // 4)
        if bad > allowed:
            raise PluginError(
                f"{cause} {bad} of the last {len(self._recent)} groups could not be scored, more than model.max_failed_groups "
                f"{self.max_failed_groups:g} allows; correct the reward."
            ) from cause
        log.warning("%s The group is left out (%d so far).", cause, self.failed)

    def _of_group(self, reward: Reward, group: RolloutGroup) -> tuple[float, ...]:
        """One reward's scores of a group."""
        return self._waited(  # type: ignore[no-any-return]
            reward, f"sample {group.sample.id}", self.timeout_s, lambda: checked_scores(reward, group.completions, group.sample)
        )

    def _of_batch(self, reward: Reward, batch: RewardBatch) -> Sequence[tuple[float, ...] | PluginError]:
        """One reward's scores of a rollout batch; where the whole fails, every group has that reason."""
        limit = None if self.timeout_s is None else self.timeout_s * len(batch.groups)
        try:
            return self._waited(reward, "a whole rollout batch", limit, lambda: checked_batch(reward, batch))  # type: ignore[no-any-return]
        except PluginError as fault:
            return [fault] * len(batch.groups)

    def _waited(self, reward: Reward, what: str, limit: float | None, work: Callable[[], Any]) -> Any:
        """A result of the thread, with a word where it takes long and an end where it takes for ever."""
        answer = self._thread.ask(work)
        waited = 0.0
        while True:
            step = _PATIENCE_S if limit is None else min(_PATIENCE_S, limit - waited)
            try:
                good, value = answer.get(timeout=max(step, 1e-3))
                break
            except queue.Empty:
                waited += step
                if limit is not None and waited >= limit:
                    self._thread = _Worker()  # the old thread is left to its call
                    raise PluginError(f"the reward {reward.name!r}, {what}: no score after {waited:g} s (model.reward_timeout).") from None
                log.warning("still waiting for the reward %r (%.0f s)", reward.name, waited)
        if good:
            return value
        raise value


class _Worker:
    """A daemon thread that computes one thing at a time: unlike an executor's, it does not keep the process from ending."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[tuple[bool, Any]]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def ask(self, work: Callable[[], Any]) -> queue.SimpleQueue[tuple[bool, Any]]:
        """Start a computation; the queue gets (True, result) or (False, exception)."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rewards", daemon=True)
            self._thread.start()
        answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._asked.put((work, answer))
        return answer

    @torch.no_grad()
    def _run(self) -> None:
        while True:
            work, answer = self._asked.get()
            try:
                answer.put((True, work()))
            except BaseException as error:  # the asking thread decides
                answer.put((False, error))

    def __reduce__(self) -> tuple[type[_Worker], tuple[()]]:
        return _Worker, ()
