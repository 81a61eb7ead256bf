"""From logits to the next token. Same seed, same logits, same token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from merino_edge.agent.errors import AgentError

if TYPE_CHECKING:
    import numpy.typing as npt

TINY = 1e-300  # what is less likely is never drawn
MARGIN = 1e-9  # of probability, for the rounding of a sum


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
        weights = np.exp(scaled - scaled.max())
        order = self._likeliest(scaled, weights)
        reached = np.cumsum(weights[order])
        reached /= reached[-1] if self.top_k and self.top_k < len(logits) else weights.sum()
        kept = int(np.searchsorted(reached, self.top_p)) + 1
        draw = self._random.random() * reached[min(kept, len(reached)) - 1]
        return int(order[min(int(np.searchsorted(reached, draw, side="right")), kept - 1)])

    def _likeliest(self, scaled: npt.NDArray[Any], weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return tokens by falling weight, equal ones by their number: as many as can be drawn, or all.

        Sorting a whole vocabulary costs several times what finding its largest few does.
        """
        if self.top_k and self.top_k < len(scaled):
            least = np.partition(scaled, len(scaled) - self.top_k)[len(scaled) - self.top_k]
        else:  # all that are less likely than this reach 1 - top_p not even together
            least = scaled.max() + np.log(max((1 - self.top_p - MARGIN) * weights.mean(), 0.0) or TINY)
        few = np.flatnonzero(scaled >= least)
        order = few[np.argsort(-scaled[few], kind="stable")]
        return order[: self.top_k] if self.top_k else order
