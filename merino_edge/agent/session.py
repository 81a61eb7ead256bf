"""One interface that hides the runtimes. Trial, generation, measurement and perplexity use it and nothing else.

The cache and its layout are private to the class of each runtime; nobody else ever sees them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]

PREFILL_CHUNK = 128  # tokens fed at once where a prompt, text or cache is filled: bounds the peak of memory


class Session:
    """A model that can be fed tokens.

    Attributes:
        length: Positions in the cache.
        provider: What really executes it.
        vocab_size: V.
    """

    length = 0
    provider = ""
    vocab_size = 0

    def feed(self, token_ids: Tokens, want: Sequence[int]) -> npt.NDArray[Any]:
        """Append tokens.

        Args:
            token_ids: `(T,)` new tokens.
            want: Positions among them whose logits are wanted, at least one.

        Returns:
            float32 `(len(want), V)`, valid until the next call.
        """
        raise NotImplementedError

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the model."""
        raise NotImplementedError

    def prefill(self, token_ids: Tokens) -> npt.NDArray[Any]:
        """Append a text of any length in chunks and return the `(V,)` logits after it."""
        logits = np.zeros(0, np.float32)
        for start in range(0, len(token_ids), PREFILL_CHUNK):
            chunk = token_ids[start : start + PREFILL_CHUNK]
            logits = self.feed(chunk, [len(chunk) - 1])[0]
        return logits
