"""One interface that hides the runtimes. Trial, generation, measurement and perplexity use it and nothing else.

The cache and its layout are private to the class of each runtime; nobody else ever sees them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterator, Sequence

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]


class Session:
    """A model that can be fed tokens.

    Attributes:
        length: Positions in the cache.
        provider: What really executes it.
        vocab_size: V.
        prefill_chunk: Tokens of a prompt that are fed at once. The scores of attention are T x (P + T) numbers a
            head: chunks bound the peak of memory, and later tokens are not scored only to be masked.
    """

    length = 0
    provider = ""
    vocab_size = 0
    prefill_chunk = 128

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

    def chunks(self, token_ids: Tokens) -> Iterator[Tokens]:
        """Cut a text into what is fed at once."""
        for start in range(0, len(token_ids), self.prefill_chunk):
            yield token_ids[start : start + self.prefill_chunk]

    def prefill(self, token_ids: Tokens) -> npt.NDArray[Any]:
        """Append a text of any length in chunks and return the `(V,)` logits after it."""
        logits = np.zeros(0, np.float32)
        for chunk in self.chunks(token_ids):
            logits = self.feed(chunk, [len(chunk) - 1])[0]
        return logits
