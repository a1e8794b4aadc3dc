"""Rewards that wait: for a model behind an API, a database, another machine."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from locus_lightning.errors import ConfigError
from locus_lightning.rewards.base import Reward, RewardBatch, Scores
from locus_lightning.types import Completion


class RemoteReward(Reward):
    """Base of rewards whose score is awaited. All completions of a rollout batch are asked for together, at most ``concurrency`` at a time. A call
    that fails or takes too long is tried again; where it fails for good, its group is left out (``model.max_failed_groups``).

    Args:
        weight: See :class:`Reward`.
        name: See :class:`Reward`.
        timeout: How many seconds one call may take.
        concurrency: The number of calls under way at a time.
        retries: How many times a call that failed is tried again, after 1, 2, 4 and so on seconds.
    """

    def __init__(
        self, weight: float = 1.0, name: str | None = None, timeout: float = 30.0, concurrency: int = 16, retries: int = 2
    ) -> None:
        super().__init__(weight, name)
        if timeout <= 0 or concurrency < 1 or retries < 0:
            raise ConfigError(
                f"{type(self).__name__}: timeout is {timeout} (above 0), concurrency {concurrency} (at least 1), retries {retries} (at least 0)."
            )
        self.timeout, self.concurrency, self.retries = timeout, concurrency, retries

    @abstractmethod
    async def ask(self, completion: Completion, sample: Any) -> float:
        """The score of one completion. Any exception counts as a failed call."""

    def score(self, completion: Completion, sample: Any) -> float:
        """See :meth:`Reward.score`."""
        return self.score_group([completion], sample)[0]

    def score_group(self, completions: Sequence[Completion], sample: Any) -> list[float]:
        """See :meth:`Reward.score_group`."""
        (scores,) = self.score_batch(RewardBatch([(completions, sample)], 0))
        if isinstance(scores, Exception):
            raise scores
        return list(scores)

    def score_batch(self, batch: RewardBatch) -> list[Scores]:
        """See :meth:`Reward.score_batch`."""
        return asyncio.run(self._all(batch))

    async def _all(self, batch: RewardBatch) -> list[Scores]:
        gate = asyncio.Semaphore(self.concurrency)
        groups = [
            asyncio.gather(*(self._one(gate, one, sample) for one in completions), return_exceptions=True)
            for completions, sample in batch.groups
        ]
        results: list[Scores] = []
        for scores in await asyncio.gather(*groups):
            failed = next((score for score in scores if isinstance(score, BaseException)), None)
            results.append(scores if failed is None else failed if isinstance(failed, Exception) else RuntimeError(repr(failed)))  # type: ignore[arg-type]
        return results

    async def _one(self, gate: asyncio.Semaphore, completion: Completion, sample: Any) -> float:
        for tried in range(self.retries + 1):
            try:
                async with gate:
                    return await asyncio.wait_for(self.ask(completion, sample), self.timeout)
            except Exception as cause:
                if tried == self.retries:
                    late = f"no score within {self.timeout:g} s" if isinstance(cause, TimeoutError) else f"{type(cause).__name__}: {cause}"
                    raise RuntimeError(f"{tried + 1} calls failed, the last one with {late}") from cause
                await asyncio.sleep(2.0**tried)
        raise AssertionError("the loop returns or raises")
