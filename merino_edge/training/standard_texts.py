"""Perplexity of any causal model on texts: WikiText-2's and PTB's test sets, files, or what a checkpoint holds out.

A text is scored as one sequence. Word perplexity is normalised by blank-separated words plus one for
each line end, as these two sets have always been counted: 245,569 for WikiText-2, 82,430 for PTB.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer

from merino_edge.errors import DataError, UsageError
from merino_edge.tokenizer_settings import tokenizer_settings
from merino_edge.training.evaluate import Evaluation, evaluate_tokens, load_model
from merino_edge.training.text import open_text

STANDARD = {"wikitext2": "wikitext2/wiki.test.raw.xz", "ptb": "ptb/ptb.test.txt.xz"}


@dataclass(frozen=True)
class Opened:
    """A model ready to be scored.

    Attributes:
        model: In evaluation mode, on the GPU where there is one.
        tokenizer: As transformers has it.
        encode: Text to token ids, nothing added.
        context_length: The longest it was made for.
    """

    model: Any
    tokenizer: Any
    encode: Callable[[str], Sequence[int]]
    context_length: int


@dataclass(frozen=True)
class ScoredText:
    """A text, how it was counted, and how well it was foretold."""

    name: str
    bytes: int
    words: int
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints."""
        found = self.evaluation
        return {
            "text": self.name,
            "tokens": found.tokens,
            "bytes": self.bytes,
            "words": self.words,
            "context_length": found.context_length,
            "stride": found.stride,
            "loss": found.loss,
            "perplexity": found.perplexity,
            "word_perplexity": found.word_perplexity(self.words),
            "bits_per_byte": found.bits_per_byte(self.bytes),
        }


def open_checkpoint(folder: Path) -> Opened:
    """Open a checkpoint of ours with the tokenizer in it."""
    from transformers import PreTrainedTokenizerFast

    model = load_model(folder)
    if torch.cuda.is_available():
        model.to(torch.device("cuda"))  # type: ignore[arg-type]  # transformers types its wrapper wrongly
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    _, words = tokenizer_settings(folder)  # which transformers may have written again
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=words.get("eos_token"), pad_token=words.get("pad_token")
    )
    context = model.config.max_position_embeddings
    return Opened(model, wrapped, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, context)


def open_hub(name: str) -> Opened:
    """Open a model of the Hugging Face hub, or a folder in its format."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from merino_edge.training.loop import quiet

    if (name.startswith((".", "/")) or name.count("/") > 1) and not Path(name).is_dir():
        raise UsageError(f"cannot open hf:{name}: there is no such folder", hint="hf: takes a folder, or a hub's name")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        line = str(error).strip().splitlines()[0]
        raise UsageError(f"cannot open hf:{name}: {line}", hint="is the name right, and is there a network?") from error
    model.train(False)
    if torch.cuda.is_available():
        model.to(torch.device("cuda"))
    context: Any = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", 1024)

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    return Opened(model, tokenizer, encode, int(context))


def read_texts(sources: Sequence[str]) -> dict[str, str]:
    """Read the texts to score.

    Args:
        sources: `wikitext2`, `ptb`, or files and folders as for training; without any the two standard
            texts, where `$MERINO_EDGE_DATA` holds them.
    """
    root = Path(os.environ.get("MERINO_EDGE_DATA") or "")
    if not sources:
        found = [n for n, f in STANDARD.items() if os.environ.get("MERINO_EDGE_DATA") and (root / f).is_file()]
        return {name: _standard(root / STANDARD[name]) for name in found}
    texts = {}
    for source in sources:
        if source in STANDARD and not Path(source).exists():
            if not os.environ.get("MERINO_EDGE_DATA"):
                raise DataError(
                    f"'{source}' is read from MERINO_EDGE_DATA, which is not set", hint="set it to the folder"
                )
            texts[source] = _standard(root / STANDARD[source])
        else:
            text = "".join(piece.text for piece in open_text([source]).pieces())
            texts[Path(source).name] = text
    return texts


def _standard(path: Path) -> str:
    try:
        return lzma.decompress(path.read_bytes()).decode("utf-8")
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", hint="copy it again") from error


def score_text(
    opened: Opened,
    name: str,
    text: str,
    context_length: int,
    stride: int,
    progress: Callable[[float], None] | None = None,
    max_tokens: int | None = None,
) -> ScoredText:
    """Score one text; with `max_tokens` only its beginning, cut where a token ends."""
    ids: npt.NDArray[np.int64] = np.asarray(opened.encode(text), np.int64)
    if max_tokens is not None and len(ids) > max_tokens:
        ids = ids[:max_tokens]
        text = str(opened.tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False))
    if len(ids) < 2:
        raise DataError(f"{name} holds too little text to score: {len(ids)} tokens", hint="name another with --data")
    evaluation = evaluate_tokens(opened.model, ids, context_length, stride, progress)
    return ScoredText(name, len(text.encode()), len(text.split()) + text.count("\n"), evaluation)
