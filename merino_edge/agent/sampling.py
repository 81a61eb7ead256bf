"""From logits to the next token. Same seed, same logits, same token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from merino_edge.agent.errors import AgentError

if TYPE_CHECKING:
    import numpy.typing as npt


class Sampler:
    """Temperature, top-k, then top-p (Holtzman et al. 2019), from one seeded stream.

    Args:
        temperature: 0 takes the largest logit.
        top_p: Keep the likeliest tokens that together reach this probability.
        top_k: Keep so many of the likeliest; 0 keeps all.
        seed: Of the stream.
    """

    def __init__(self, temperature: float, top_p: float, top_k: int, seed: int) -> None:
        if not 0 <= temperature <= 100 or not 0 < top_p <= 1 or top_k < 0 or seed < 0:
            raise AgentError("request", f"cannot sample with temperature {temperature}, top_p {top_p}, top_k {top_k}")
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self._random = np.random.Generator(np.random.PCG64(seed))

    def __call__(self, logits: npt.NDArray[Any]) -> int:
        """Return the next token for `(V,)` logits."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        scaled = logits.astype(np.float64) / self.temperature
        order = np.argsort(-scaled, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        weights = np.exp(scaled[order] - scaled[order[0]])
        weights /= weights.sum()
        reached = np.cumsum(weights)
        kept = int(np.searchsorted(reached, self.top_p)) + 1
        draw = self._random.random() * reached[min(kept, len(reached)) - 1]
        return int(order[min(int(np.searchsorted(reached, draw, side="right")), kept - 1)])
