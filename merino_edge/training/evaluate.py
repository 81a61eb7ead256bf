"""Perplexity and bits per byte of a model on token ids.

Perplexity is exp of the mean negative log-likelihood of each token but the first, given at most
`context_length` tokens before it. With `stride` equal to the context every window starts with
nothing known; a smaller stride leaves each window `context_length - stride` tokens to look back on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from merino_edge.checkpoint import read_checkpoint
from merino_edge.errors import DataError, InvalidFileError
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM

MAX_LOGITS = 1 << 26  # values of one batch's logits: 256 MiB of float32
MAX_HASTY = 1 << 22  # where the clock is looked at after each


@dataclass(frozen=True)
class Evaluation:
    """How well a model foretells a text.

    Attributes:
        nll_nats_sum: Negative log-likelihood of all scored tokens, natural logarithm.
        tokens: Scored tokens: all but the first.
        context_length: Tokens of one window.
        stride: Tokens from one window to the next.
    """

    nll_nats_sum: float
    tokens: int
    context_length: int
    stride: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll_nats_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """Exp of the loss; infinite where that is out of range."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def bits_per_byte(self, text_bytes: int) -> float:
        """Bits for each byte of the UTF-8 text: comparable between tokenizers."""
        return self.nll_nats_sum / math.log(2) / text_bytes

    def word_perplexity(self, words: int) -> float:
        """Perplexity for each of `words`: comparable between tokenizers, given one way to count words."""
        return math.exp(self.nll_nats_sum / words) if self.nll_nats_sum / words < 700 else math.inf


def windows(tokens: int, context_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, first scored position) of each window, so that every token but the first is scored once.

    A window is one token longer than the context: its last token is only asked for.
    """
    scored = 1
    for begin in range(0, tokens, stride):
        end = min(begin + context_length + 1, tokens)
        if end > scored:
            yield begin, end, scored
        scored = end
        if end == tokens:
            return


@torch.no_grad()
def evaluate_tokens(
    model: torch.nn.Module,
    token_ids: npt.NDArray[np.integer],
    context_length: int,
    stride: int | None = None,
    progress: Callable[[float], None] | None = None,
    seconds: float | None = None,
) -> Evaluation:
    """Score a sequence of tokens.

    Args:
        model: Any causal model that answers `model(input_ids).logits`; its mode is restored.
        token_ids: `(N,)`, at least 2.
        context_length: Tokens of one window.
        stride: Tokens from one window to the next, at most the context; by default equal to it.
        progress: Told the share that is done, 0 to 1.
        seconds: Begin no window after so long; what was scored until then is the result.

    Raises:
        DataError: there are fewer than two tokens, or the stride skips some.
    """
    stride = context_length if stride is None else stride
    if len(token_ids) < 2:
        raise DataError(f"{len(token_ids)} tokens cannot be scored", hint="give at least two")
    if not 1 <= stride <= context_length:
        raise DataError(f"a stride of {stride} does not fit a context of {context_length}", hint="use 1 to the context")
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, done, limit, scored = 0.0, 0, 1, 0
    until = math.inf if seconds is None else time.monotonic() + seconds
    batch: list[tuple[int, int, int]] = []
    plan = list(windows(len(token_ids), context_length, stride))
    try:
        for number, window in enumerate(plan):
            batch.append(window)
            following = plan[number + 1] if number + 1 < len(plan) else None
            if following and len(batch) < limit and following[1] - following[0] == window[1] - window[0]:
                continue
            ids = np.stack([token_ids[begin:end] for begin, end, _ in batch]).astype(np.int64)  # (B, T)
            nll, vocab_size = _score(model, torch.from_numpy(ids).to(device))
            for row, (begin, _, first) in zip(nll, batch, strict=True):
                total += float(row[first - begin - 1 :].sum(dtype=torch.float64))
            limit = max(1, (MAX_LOGITS if seconds is None else MAX_HASTY) // (context_length * vocab_size))
            done, scored = done + len(batch), window[1] - 1
            batch = []
            if progress:
                progress(done / len(plan))
            if time.monotonic() >= until:
                break
    finally:
        model.train(training)
    return Evaluation(total, scored, context_length, stride)


def _score(model: torch.nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the `(B, T - 1)` negative log-likelihoods of the second to last tokens, and V."""
    logits = model(ids[:, :-1]).logits.float()  # (B, T - 1, V)
    nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    return nll, logits.shape[-1]


def load_model(folder: Path) -> MerinoForCausalLM:
    """Load a checkpoint's model in float32, in evaluation mode, every tensor checked.

    Raises:
        InvalidFileError: the folder is no checkpoint of ours, or is damaged.
    """
    checkpoint = read_checkpoint(folder)
    model = MerinoForCausalLM(
        MerinoConfig(
            architecture=checkpoint.architecture.to_json(),
            trained_tokens=checkpoint.trained_tokens,
            max_position_embeddings=checkpoint.context_length,
        )
    )
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in checkpoint.tensors.items()})
    model.train(False)
    return model


def evaluate_checkpoint(
    folder: Path,
    token_ids: npt.NDArray[np.integer] | None = None,
    context_length: int | None = None,
    stride: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Score a checkpoint on token ids.

    Args:
        folder: The checkpoint.
        token_ids: `(N,)`; by default the held-out tokens that lie in the checkpoint.
        context_length: By default that of training.
        stride: See `evaluate_tokens`.
        progress: See `evaluate_tokens`.
    """
    model = load_model(folder)
    if token_ids is None:
        path = folder / "validation_tokens.npy"
        try:
            token_ids = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InvalidFileError(f"cannot read {path}: {error}", hint="give a text to evaluate on") from error
    if len(token_ids) and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < model.config.merino.vocab_size:
        raise DataError(f"token ids do not belong to the vocabulary of {folder}", hint="use its own tokenizer")
    return evaluate_tokens(model, token_ids, context_length or model.config.max_position_embeddings, stride, progress)
