"""From text to token files: the tokenizer, the held-out split, and memory-mapped tokens.

`prepare_data` gives a folder with `tokenizer.json`, `train.bin`, `validation.bin` and `data.json`.
It is named by a digest of text, tokenizer and seed, so that the same request finds it done.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from merino_edge.errors import DataError, InvalidFileError, MerinoEdgeError, writing_hint
from merino_edge.files import canonical_json, read_json, sync_folder, write_json
from merino_edge.training.request import Report
from merino_edge.training.text import SEPARATOR, Piece, TextSource, open_text

TokenArray = npt.NDArray[np.uint16 | np.uint32]

FACTS = "data.json"
FORMAT = 1  # raised when the same text would give other token files
VALIDATION_SHARE = 0.05
VALIDATION_CHARACTERS = 500_000  # enough held-out text, however long the rest is
VALIDATION_TOKENS = 65_536  # at most so many go into a checkpoint, and are evaluated in training
BATCH_PIECES = 256
END_OF_TEXT = (SEPARATOR, "</s>", "<eos>", "<|end_of_text|>")
SMALLEST_VOCABULARY = 257  # every byte, and the end of a document


@dataclass(frozen=True)
class TokenData:
    """Token files ready to be trained on.

    Attributes:
        folder: Where they lie.
        digest: Of text, tokenizer and seed.
        source: What the text is called in records.
        vocab_size: Of the tokenizer.
        train_tokens: Tokens to train on.
        validation_tokens: Tokens held out.
    """

    folder: Path
    digest: str
    source: str
    vocab_size: int
    train_tokens: int
    validation_tokens: int

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.folder / "tokenizer.json"

    def train(self) -> TokenArray:
        """Map the training tokens."""
        return self._map("train.bin", self.train_tokens)

    def validation(self) -> TokenArray:
        """Map the held-out tokens, at most `VALIDATION_TOKENS`."""
        return self._map("validation.bin", self.validation_tokens)[:VALIDATION_TOKENS]

    def _map(self, name: str, tokens: int) -> TokenArray:
        return np.memmap(self.folder / name, dtype=_token_type(self.vocab_size), mode="r", shape=(tokens,))


def prepare_data(
    sources: list[str] | tuple[str, ...] | None,
    *,
    vocab_size: int,
    tokenizer: str | None,
    context_length: int,
    seed: int,
    folder: Path,
    progress: Report | None = None,
) -> TokenData:
    """Return token files for the text, made now or found in `folder`.

    Args:
        sources: See `open_text`; or one folder of token files that this function made, here or on another machine.
        vocab_size: The architecture's; the tokenizer must have exactly so many tokens.
        tokenizer: None for a byte-level BPE trained on the text, `gpt2`, or the path of a `tokenizer.json`.
        context_length: The training text must hold at least one context.
        seed: Chooses the held-out pieces where the source brings none.
        folder: Where token files are kept.
        progress: Told `stage`, `step`, `steps` (characters) as the work goes on.

    Raises:
        DataError: the text is empty, not UTF-8, too short, or does not fit the tokenizer.
    """
    if sources and len(sources) == 1 and (Path(sources[0]) / FACTS).is_file():
        return _ready(Path(sources[0]), vocab_size, context_length)
    source = open_text(sources)
    given = None if tokenizer is None else load_tokenizer(tokenizer, vocab_size)
    key = {
        "format": FORMAT,
        "text": source.digest,
        "tokenizer": hashlib.sha256(given.to_str().encode()).hexdigest() if given else "bpe",
        "vocab_size": vocab_size,
        "seed": seed,
    }
    digest = hashlib.sha256(canonical_json(key).encode()).hexdigest()
    data = _find(folder / digest[:16], digest)
    if data is None:
        data = _make(source, given, vocab_size, seed, folder / digest[:16], digest, progress)
    return _long_enough(data, context_length)


def _long_enough(data: TokenData, context_length: int) -> TokenData:
    if data.train_tokens < context_length:
        raise DataError(
            f"{data.source} holds {data.train_tokens} training tokens, less than one context of {context_length}",
            hint="give more text, or a shorter --context",
        )
    return data


def _ready(folder: Path, vocab_size: int, context_length: int) -> TokenData:
    """Take token files that were made elsewhere and copied here."""
    facts = read_json(folder / FACTS, "token files")
    data = _find(folder, str(facts.get("digest")))
    if data is None:
        raise DataError(f"token files {folder} are damaged or incomplete", hint="copy the folder again")
    if data.vocab_size != vocab_size:
        raise DataError(
            f"token files {folder} have a vocabulary of {data.vocab_size}, the architecture {vocab_size}",
            hint=f"search with --vocab {data.vocab_size}, or give the text itself",
        )
    return _long_enough(data, context_length)


def load_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    """Load `gpt2` or a `tokenizer.json`, refusing one of another size.

    GPT-2's comes from `$MERINO_EDGE_DATA/gpt2_bpe` where that is set, otherwise from the Hugging Face hub.
    """
    if Path(name).is_dir():
        raise DataError(f"tokenizer {name} is a folder", hint=f"give the file in it: --tokenizer {name}/tokenizer.json")
    try:
        tokenizer = _gpt2() if name == "gpt2" else Tokenizer.from_str(Path(name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"tokenizer {name} does not exist", hint="give gpt2 or a tokenizer.json") from error
    except MerinoEdgeError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for what it cannot read
        raise DataError(f"tokenizer {name} cannot be read: {error}", hint="give gpt2 or a tokenizer.json") from error
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size != vocab_size:
        raise DataError(
            f"tokenizer {name} has {size} tokens, the architecture {vocab_size}",
            hint=f"search with --vocab {size}, or leave --tokenizer out to train one of {vocab_size}",
        )
    return tokenizer


def _gpt2() -> Tokenizer:
    folder = Path(os.environ.get("MERINO_EDGE_DATA") or "") / "gpt2_bpe"
    if not (os.environ.get("MERINO_EDGE_DATA") and folder.is_dir()):
        return Tokenizer.from_pretrained("gpt2")
    with lzma.open(folder / "encoder.json.xz", "rt", encoding="utf-8") as stream:
        vocabulary = json.load(stream)
    with lzma.open(folder / "vocab.bpe.xz", "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")[1:]  # the first line is the file's version
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines) if right]
    return _byte_level(models.BPE(vocab=vocabulary, merges=merges))


def _byte_level(model: models.BPE) -> Tokenizer:
    """Return a tokenizer over bytes (Radford et al. 2019): no text is unknown to it."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(SEPARATOR, special=True)])
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (Sennrich et al. 2016) of exactly `vocab_size` tokens.

    A text with fewer pairs to merge is refused instead of padding the table with tokens that no
    text ever uses: every row costs memory and time on the board.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"a vocabulary of {vocab_size} cannot hold the {SMALLEST_VOCABULARY} tokens of a byte-level BPE",
            hint=f"search with --vocab {SMALLEST_VOCABULARY} or more",
        )
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        show_progress=False,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        raise DataError(
            f"the text yields a vocabulary of {size}, the architecture has {vocab_size}",
            hint=f"give more text, or search with --vocab {max(SMALLEST_VOCABULARY, size * 3 // 4)}",
        )
    return tokenizer


def end_of_text_id(tokenizer: Tokenizer) -> int | None:
    """Return the token that ends a document, None where the tokenizer has none."""
    return next((i for name in END_OF_TEXT if (i := tokenizer.token_to_id(name)) is not None), None)


def write_validation(data: TokenData, folder: Path, tokens: int = VALIDATION_TOKENS) -> None:
    """Put the first held-out tokens into a checkpoint, so that exports can be evaluated without the text.

    Writes `validation_tokens.npy` (int32) and `validation.json` with the number of `tokens`, and of
    `bytes` and `words` (split at blanks) of the text they decode to; ends of documents are tokens, no bytes.
    """
    token_ids = np.asarray(data.validation()[:tokens], np.int32)
    text = held_out_text(data, tokens)
    np.save(folder / "validation_tokens.npy", token_ids)
    facts = {"tokens": len(token_ids), "bytes": len(text.encode()), "words": len(text.split()), "source": data.source}
    write_json(folder / "validation.json", facts)


def held_out_text(data: TokenData, tokens: int) -> str:
    """Return the text of the first held-out tokens, without the ends of its documents."""
    token_ids = data.validation()[:tokens].tolist()
    text: str = Tokenizer.from_file(str(data.tokenizer)).decode(token_ids, skip_special_tokens=True)
    return text


def _token_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _find(folder: Path, digest: str) -> TokenData | None:
    """Return token files made before; None where there are none or they are damaged."""
    try:
        facts = read_json(folder / FACTS, "token files")
        data = TokenData(
            folder,
            facts["digest"],
            facts["source"],
            facts["vocab_size"],
            facts["train_tokens"],
            facts["validation_tokens"],
        )
        width = np.dtype(_token_type(data.vocab_size)).itemsize
        whole = all(
            (folder / name).stat().st_size == tokens * width
            for name, tokens in (("train.bin", data.train_tokens), ("validation.bin", data.validation_tokens))
        )
        return data if whole and data.digest == digest and data.tokenizer.is_file() else None
    except (InvalidFileError, KeyError, OSError, TypeError):
        return None


def _make(
    source: TextSource,
    given: Tokenizer | None,
    vocab_size: int,
    seed: int,
    folder: Path,
    digest: str,
    progress: Report | None,
) -> TokenData:
    """Make the token files under a temporary name, then rename the folder."""
    train, validation, characters = _split(source, seed)

    def watched(pieces: Iterator[Piece], stage: str) -> Iterator[Piece]:
        done = 0
        for piece in pieces:
            if progress:
                progress({"stage": stage, "step": done, "steps": characters})
            done += len(piece.text)
            yield piece

    tokenizer = given or train_tokenizer((p.text for p in watched(train(), "tokenizer")), vocab_size)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tokens-", dir=folder.parent))
        tokenizer.save(str(temporary / "tokenizer.json"))
        counts = {
            name: _write_tokens(watched(pieces(), "tokens"), tokenizer, temporary / f"{name}.bin", vocab_size)
            for name, pieces in (("train", train), ("validation", validation))
        }
        data = TokenData(folder, digest, source.name, vocab_size, counts["train"], counts["validation"])
        if data.validation_tokens < 2:
            raise DataError(f"{source.name} leaves no text to validate on", hint="give more text")
        facts = {key: getattr(data, key) for key in data.__dataclass_fields__ if key != "folder"}
        write_json(temporary / FACTS, facts)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise DataError(
            f"cannot write tokens to {folder}: {error.strerror or error}",
            hint=writing_hint(error, "set XDG_CACHE_HOME to another folder"),
        ) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)
    return data


def _split(source: TextSource, seed: int) -> tuple[Callable[[], Iterator[Piece]], Callable[[], Iterator[Piece]], int]:
    """Choose held-out pieces by the seed, where the source brings none; count the training characters."""
    lengths = [len(piece.text) for piece in source.pieces()]
    total = sum(lengths)
    if not lengths:
        raise DataError(f"{source.name} holds no text", hint="give a file with some text in it")
    if source.validation is not None:
        return source.pieces, source.validation, total
    if len(lengths) == 1:
        raise DataError(f"{source.name} holds only {total} characters", hint="give more text")
    wanted = min(VALIDATION_CHARACTERS, VALIDATION_SHARE * total)
    held_out: set[int] = set()
    characters = 0
    for i in random.Random(seed).sample(range(len(lengths)), len(lengths) - 1):  # noqa: S311  no secret
        if characters >= wanted:
            break
        held_out.add(i)
        characters += lengths[i]

    def chosen(validation: bool) -> Iterator[Piece]:
        return (piece for i, piece in enumerate(source.pieces()) if (i in held_out) == validation)

    return lambda: chosen(False), lambda: chosen(True), total


def _write_tokens(pieces: Iterator[Piece], tokenizer: Tokenizer, path: Path, vocab_size: int) -> int:
    """Append the pieces' tokens to a file, ends of documents between them; return their number."""
    end = end_of_text_id(tokenizer)
    tokens = 0
    with open(path, "wb") as stream:
        while batch := [piece for _, piece in zip(range(BATCH_PIECES), pieces, strict=False)]:
            encodings = tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
            for piece, encoding in zip(batch, encodings, strict=True):
                token_ids = encoding.ids + ([end] if piece.ends_document and end is not None else [])
                tokens += len(token_ids)
                stream.write(np.asarray(token_ids, _token_type(vocab_size)).tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    return tokens
