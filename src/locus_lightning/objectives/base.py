"""The objective contract."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from locus_lightning.objectives.advantages import Reduction


class Objective(ABC):
    """Tensors in, loss and named statistics out; no other state than its settings.

    ``kl_coef`` above 0 asks for log-probabilities of the reference model; ``reduction`` says how tokens are weighted; ``entropy_coef`` other
    than 0 asks for entropies with gradient.
    """

    kl_coef: float
    reduction: Reduction
    entropy_coef: float = 0.0

    @abstractmethod
    def advantages(self, rewards_BG: Tensor) -> Tensor:
        """Advantages (B, G) of a rollout batch's rewards."""

    def advantages_of(self, rewards_BG: Tensor, scores_RBG: Tensor, weights_R: Tensor) -> Tensor:
        """The same from the scores of every reward, (R, B, G), and the rewards' weights (R,), for objectives that look at rewards one by one."""
        return self.advantages(rewards_BG)

    @abstractmethod
    def __call__(
        self,
        logps_BGT: Tensor,
        old_logps_BGT: Tensor,
        ref_logps_BGT: Tensor | None,
        advantages_BG: Tensor,
        weights_BGT: Tensor,
        mask_BGT: Tensor,
        *,
        sampled_logps_BGT: Tensor | None = None,
        entropy_BGT: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch and what to log about it, float32 inside.

        Args:
            logps_BGT: log-probabilities under the policy, with gradient.
            old_logps_BGT: under the policy that sampled.
            ref_logps_BGT: under the reference model, or None when ``kl_coef`` is 0.
            advantages_BG: group-relative advantages.
            weights_BGT: share of each token in the loss, zero where it does not count; set at collection.
            mask_BGT: True at tokens of completions.
            sampled_logps_BGT: log-probabilities as the rollout engine gave them.
            entropy_BGT: entropy of the policy at every token; with gradient where ``entropy_coef`` is not 0.
        """
