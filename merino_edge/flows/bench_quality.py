"""Perplexity beside speed: of exported files on each model's held-out tokens, or of all on one text.

Perplexities of different tokenizers, or on different texts, are different quantities: a row says which
it is, and whoever prints rows keeps them apart. Bits per byte compare between tokenizers on one text.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from merino_edge.bundle import TOKENIZER, Bundle
from merino_edge.device.client import Device
from merino_edge.errors import DataError
from merino_edge.flows.bench_rows import tokenizer_digest
from merino_edge.flows.quality import read_validation
from merino_edge.flows.subject import Subject

BYTES_PER_TOKEN = 4  # so much of a text stands for a token, so that every tokenizer scores the same bytes


@dataclass(frozen=True)
class Text:
    """A text to score models on, cut to the length asked for.

    Attributes:
        name: Its file and the first digits of its SHA-256.
        text: Itself.
    """

    name: str
    text: str

    @property
    def bytes(self) -> int:
        """Of its UTF-8."""
        return len(self.text.encode())


def read_text(path: str, tokens: int) -> Text:
    """Read the beginning of a text.

    Raises:
        DataError: it cannot be read, or says nothing.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(BYTES_PER_TOKEN * max(tokens, 1))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", hint="--text wants plain text") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", hint="--text wants a file of text") from error
    if not text.strip():
        raise DataError(f"{path} holds no text", hint="name another with --text")
    return Text(f"{Path(path).name} {hashlib.sha256(text.encode()).hexdigest()[:12]}", text)


def quality(nats: float, scored: int, text_bytes: float, tokenizer: str | None, text: str) -> dict[str, Any]:
    """Return the columns of a row.

    Args:
        nats: Sum of the negative log likelihoods.
        scored: Tokens that it is over.
        text_bytes: Bytes of text that they stand for.
        tokenizer: Which tokens.
        text: Which text.
    """
    return {
        "perplexity": math.exp(min(nats / scored, 700.0)),
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "perplexity_tokens": scored,
        "tokenizer": tokenizer,
        "text": text,
    }


def perplexity_of(device: Device, subject: Subject, bundle: Bundle, tokens: int, text: Text | None) -> dict[str, Any]:
    """Return the perplexity of an exported file, computed on the device; empty where there is nothing to score."""
    if tokens == 0 or not bundle.manifest.trained:
        return {}
    if text is not None:
        ids: npt.NDArray[np.integer] = encode(bundle.folder / TOKENIZER, text)
        text_bytes, name = float(text.bytes), text.name
    else:
        held_out = read_validation(subject.checkpoint) if subject.checkpoint is not None else None
        if held_out is None:
            return {}
        ids = held_out[0][:tokens]
        text_bytes = held_out[1] * (len(ids) - 1)
        name = f"held out {hashlib.sha256(np.ascontiguousarray(ids, '<i4').tobytes()).hexdigest()[:12]}"
    result = device.perplexity(bundle, ids, bundle.manifest.context_length, None)
    return quality(result.nll_nats_sum, result.tokens, text_bytes, tokenizer_digest(bundle), name)


def encode(tokenizer: Path, text: Text) -> npt.NDArray[np.int32]:
    """Return the tokens of a text.

    Raises:
        DataError: there is no such tokenizer, or the text is too short for it.
    """
    from tokenizers import Tokenizer

    if not tokenizer.is_file():
        raise DataError(f"{tokenizer.parent} holds no tokenizer for --text", hint="leave out --text for it")
    ids = Tokenizer.from_file(str(tokenizer)).encode(text.text, add_special_tokens=False).ids
    if len(ids) < 2:
        raise DataError("the text of --text is shorter than two tokens", hint="name a longer one")
    return np.asarray(ids, np.int32)
