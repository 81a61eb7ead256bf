"""What rounding cost a trained model: perplexity of the exported file against that of its fp32 weights.

Both are computed on the same held-out tokens and windows, by the sessions that devices use; the fp32
side is an fp32 ONNX file written for the purpose, so that no torch is needed. At most
`EVALUATED_TOKENS` are scored, which bounds the time; what follows them in the text serves as
calibration text to quantizers that want some, so that no token is in both.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from merino_edge.agent.errors import AgentError
from merino_edge.bundle import TOKENIZER, Manifest
from merino_edge.errors import DataError, ExportError, UsageError

TokenIds = npt.NDArray[np.int32]
VALIDATION_TOKENS = "validation_tokens.npy"
VALIDATION_FACTS = "validation.json"
EVALUATED_TOKENS = 8192
CALIBRATION_TOKENS = 65_536  # eight times as many halve what 4 bits cost; a minute or two for 60 M parameters
FEWEST_TOKENS = 512  # on fewer, one sentence decides
LIMITS = {"wi4": 0.03}  # by what stands in the recipe's name
LIMIT = 0.01
MANY_CHARACTERS = 1 << 20  # of a text: more than enough for all tokens wanted


@dataclass(frozen=True)
class HeldOut:
    """Text that the model was not trained on, as tokens.

    Attributes:
        token_ids: `(N,)`.
        source: What it is called in the manifest.
    """

    token_ids: TokenIds
    source: str

    @property
    def evaluated(self) -> TokenIds:
        """What perplexity is computed on: the first half, at most `EVALUATED_TOKENS` and one to begin with."""
        return self.token_ids[: min(EVALUATED_TOKENS + 1, len(self.token_ids) // 2 + 1)]

    @property
    def calibration(self) -> TokenIds:
        """The end of the rest, at most `CALIBRATION_TOKENS`."""
        return self.token_ids[len(self.evaluated) :][-CALIBRATION_TOKENS:]


@dataclass(frozen=True)
class Judge:
    """The text an export is judged by, or why there is none.

    Attributes:
        held_out: Text; None for no judgement.
        limit: Largest share by which perplexity may rise; None for the recipe's.
        reason: Why there is no text.
    """

    held_out: HeldOut | None = None
    limit: float | None = None
    reason: str = "random weights"


def read_validation(checkpoint: Path) -> tuple[npt.NDArray[np.integer], float] | None:
    """Return the held-out tokens that lie beside the weights, and bytes of text per token."""
    path, facts = checkpoint / VALIDATION_TOKENS, checkpoint / VALIDATION_FACTS
    if not path.is_file() or not facts.is_file():
        return None
    try:
        tokens = np.load(path, allow_pickle=False)
        value = json.loads(facts.read_text(encoding="utf-8"))
        return tokens, float(value["bytes"]) / float(value["tokens"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UsageError(f"the held-out tokens of {checkpoint} cannot be read: {error}", hint="train again") from error


def find_held_out(checkpoint: Path, vocab_size: int, text: str | None) -> HeldOut | None:
    """Return the text to judge a checkpoint by: the one named, else what training held out.

    Raises:
        DataError: the text cannot be read, or its tokens are none of this model's.
    """
    if text is not None:
        held_out = HeldOut(_encode(text, checkpoint / TOKENIZER), Path(text).name)
    else:
        found = read_validation(checkpoint)
        if found is None:
            return None
        held_out = HeldOut(np.asarray(found[0]), "held out in training")
    ids = held_out.token_ids
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or (len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size):
        raise DataError(
            f"{held_out.source}: these are no tokens of a vocabulary of {vocab_size}", hint="name a text with --text"
        )
    return held_out


def find_judge(checkpoint: Path, vocab_size: int, text: str | None, limit: float | None) -> Judge:
    """Return what a checkpoint's exports are judged by; see `find_held_out`."""
    held_out = find_held_out(checkpoint, vocab_size, text)
    return Judge(held_out, limit, "no held-out tokens lie beside the weights")


def _encode(text: str, tokenizer: Path) -> TokenIds:
    from tokenizers import Tokenizer

    from merino_edge.training.text import open_text

    if not tokenizer.is_file():
        raise DataError(f"no tokenizer lies beside the weights: {tokenizer} is missing", hint="export without --text")
    pieces, characters = [], 0
    for piece in open_text([text]).pieces():
        pieces.append(piece.text)
        characters += len(piece.text)
        if characters > MANY_CHARACTERS:
            break
    if not characters:
        raise DataError(f"{text} holds no text", hint="name another with --text")
    return np.asarray(Tokenizer.from_file(str(tokenizer)).encode("".join(pieces)).ids, np.int32)


def not_measured(reason: str) -> dict[str, Any]:
    """Return the manifest's `quality` where there is nothing to say."""
    return {"measured": False, "reason": reason}


def limit_of(recipe: str) -> float:
    """Return the largest change of perplexity that a recipe may cost, as a share."""
    return next((limit for part, limit in LIMITS.items() if part in recipe), LIMIT)


def compare_quality(
    folder: Path,
    manifest: Manifest,
    fp32: tuple[Path, Manifest],
    held_out: HeldOut,
    limit: float | None,
    tell: Callable[[float], None],
) -> dict[str, Any]:
    """Score both files on the same windows.

    Args:
        folder: Of the file to judge.
        manifest: Describes it.
        fp32: Folder and manifest of the same weights in float32.
        held_out: The text.
        limit: Largest change allowed; None for the recipe's.
        tell: Told how far it is, 0 to 1.

    Returns:
        The manifest's `quality`.

    Raises:
        ExportError: the change is above the limit.
    """
    token_ids = held_out.evaluated
    if len(token_ids) <= FEWEST_TOKENS:
        return not_measured(f"{max(0, len(token_ids) - 1)} held-out tokens are too few to judge by")
    try:
        after = _nats(folder, manifest, token_ids, lambda share: tell(share / 2))
        before = after if fp32[0] == folder else _nats(*fp32, token_ids, lambda share: tell(0.5 + share / 2))
    except AgentError as error:
        if error.kind != "request":
            raise ExportError(f"the exported file cannot be scored: {error.message}", hint=error.hint) from error
        return not_measured(error.message)
    count, differences = len(token_ids) - 1, after - before
    change = math.expm1(min(differences.sum() / count, 700.0))
    if not math.isfinite(change):
        raise ExportError(
            f"{manifest.recipe}: held-out text has no likelihood in this file", hint="export with --recipe fp32"
        )
    allowed = limit_of(manifest.recipe) if limit is None else limit
    quality = {
        "measured": True,
        "perplexity_fp32": math.exp(min(before.sum() / count, 700.0)),
        "perplexity": math.exp(min(after.sum() / count, 700.0)),
        "perplexity_change": change,
        "standard_error": float(differences.std() * math.sqrt(len(differences)) / count),
        "limit": allowed,
        "tokens": count,
        "context_length": manifest.context_length,
        "text": held_out.source,
    }
    if not change <= allowed:
        raise ExportError(
            f"{manifest.recipe} raises the perplexity of held-out text by {percent(change)}, from "
            f"{quality['perplexity_fp32']:.4g} to {quality['perplexity']:.4g}; at most {percent(allowed)} is allowed",
            hint=f"take a recipe nearer to fp32, or allow it: --max-perplexity-change {math.ceil(100 * change)}%",
            quality=quality,
        )
    return quality


def percent(share: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.3g} %"


def _nats(
    folder: Path, manifest: Manifest, token_ids: TokenIds, tell: Callable[[float], None]
) -> npt.NDArray[np.float64]:
    """Return the negative log-likelihood of each window's tokens, in nats."""
    from merino_edge.agent.measure import negative_log_likelihood
    from merino_edge.agent.opening import open_session

    session = open_session(folder, manifest.to_json(), os.cpu_count() or 1)
    try:
        window, last, sums = manifest.context_length, len(token_ids) - 1, []
        for start in range(0, last, window):
            piece = token_ids[start : start + window + 1]
            sums.append(negative_log_likelihood(session, piece, window, lambda _: None)[0])
            tell(min(1.0, (start + window) / last))
    finally:
        session.close()
    return np.array(sums)
