"""Where training text comes from: files, folders, a Hugging Face data set, or what is at hand.

A source yields pieces: whole documents where they are short, otherwise stretches cut at blank lines,
so that held-out text can be chosen piece by piece even from one long file. Nothing is downloaded
unless `hf:NAME` asks for it.
"""

from __future__ import annotations

import ast
import codecs
import gzip
import hashlib
import json
import lzma
import os
import sys
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from merino_edge.errors import DataError

SEPARATOR = "<|endoftext|>"  # a line of it ends a document; also the token between documents
TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
COMPRESSIONS = (".gz", ".xz", ".zst")
LONGEST_PIECE = 16_384  # characters after which a document is cut at the next blank line
SHORTEST_PIECE = 1_024
PIECES_WANTED = 100  # of a small text, so that there is something to choose held-out text from


class Piece(NamedTuple):
    """A stretch of text; `ends_document` where the document ends with it."""

    text: str
    ends_document: bool


@dataclass(frozen=True)
class TextSource:
    """Text to train on.

    Attributes:
        name: What records call it: no path of this host.
        digest: SHA-256 of the content (of the release, for what Python itself carries).
        pieces: Reads the training text, each time from the start.
        validation: Reads the source's own held-out text; None where some has to be split off.
    """

    name: str
    digest: str
    pieces: Callable[[], Iterator[Piece]]
    validation: Callable[[], Iterator[Piece]] | None = None


def open_text(sources: Sequence[str] | None) -> TextSource:
    """Return the text that was named, or the default.

    Args:
        sources: Files, folders, or one `hf:NAME`. Without any: WikiText-2 from
            `$MERINO_EDGE_DATA/wikitext2` where that is set, otherwise the English text that every
            CPython carries.

    Raises:
        DataError: a path is missing, of an unknown kind, or holds no text file.
    """
    if not sources:
        folder = Path(os.environ.get("MERINO_EDGE_DATA") or "") / "wikitext2"
        if os.environ.get("MERINO_EDGE_DATA") and (folder / "train.txt.xz").is_file():
            return _wikitext2(folder)
        return _python_text()
    hub = [source for source in sources if source.startswith("hf:")]
    if hub:
        if len(sources) > 1:
            raise DataError(f"'{hub[0]}' stands beside other sources", hint="give one hf: data set, or files alone")
        return _hub_text(hub[0])
    files = [file for source in sources for file in _text_files(Path(source))]
    names = ", ".join(Path(source).name or source for source in sources)
    return TextSource(names, _digest(files), lambda: _read_files(files))


def _text_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and _kind(p) and not p.name.startswith(".")]
        if not files:
            raise DataError(f"{path}/ holds no text", hint=f"files of {', '.join(TEXT_SUFFIXES)} are read")
        return files
    if not path.exists():
        raise DataError(f"data {path} does not exist", hint="give a file, a folder, or hf:NAME")
    if not _kind(path):
        raise DataError(
            f"data {path} is of no known kind",
            hint=f"known: {', '.join(TEXT_SUFFIXES)}, each also with {', '.join(COMPRESSIONS)}",
        )
    return [path]


def _kind(path: Path) -> str | None:
    """Return `.txt`, `.md` or `.jsonl`, seen through a compression suffix; None for anything else."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    return suffix if suffix in TEXT_SUFFIXES else None


def _digest(files: Iterable[Path]) -> str:
    """Digest names and contents, in order."""
    total = hashlib.sha256()
    for file in files:
        with _naming(file), open(file, "rb") as stream:
            total.update(file.name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn what goes wrong while reading a file into a `DataError` that names it."""
    try:
        yield
    except _damage() as error:
        raise DataError(f"data {file} is damaged: {error}", hint="copy it again") from error
    except OSError as error:
        raise DataError(f"cannot read data {file}: {error.strerror or error}") from error


def _damage() -> tuple[type[Exception], ...]:
    errors: tuple[type[Exception], ...] = (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError)
    zstandard = sys.modules.get("zstandard")
    return (*errors, zstandard.ZstdError) if zstandard is not None else errors


def _open(file: Path) -> BinaryIO:
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return cast("BinaryIO", gzip.open(file, "rb"))
    if suffix == ".xz":
        return cast("BinaryIO", lzma.open(file, "rb"))
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise DataError(
                f"reading {file} needs zstandard", hint="install merino-edge[train], or use xz or gz"
            ) from error
        return cast("BinaryIO", zstandard.open(file, "rb"))
    return open(file, "rb")


def _encoding(start: bytes) -> str:
    """Guess what a file that is not UTF-8 is written in: the mark at its beginning tells UTF-16."""
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin1"


def _lines(file: Path) -> Iterator[str]:
    """Yield lines with their ends; a byte that is not UTF-8 is named by its place."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, rest = 0, ""
    with _naming(file), _open(file) as stream:
        while True:
            data = stream.read(1 << 20)
            held_back = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                offset = done - held_back + error.start
                raise DataError(
                    f"data {file} is not UTF-8: byte {error.object[error.start]:#04x} at offset {offset}",
                    hint=f"if it is text at all, convert it with: iconv -f {_encoding(data)} -t utf-8",
                ) from error
            if done == 0:
                text = text.removeprefix("\ufeff")
            done += len(data)
            *lines, rest = (rest + text).split("\n")
            yield from (line + "\n" for line in lines)
            if not data:
                break
    if rest:
        yield rest


def _read_files(files: Sequence[Path]) -> Iterator[Piece]:
    size = sum(file.stat().st_size for file in files)
    longest = min(LONGEST_PIECE, max(SHORTEST_PIECE, size // PIECES_WANTED))
    for file in files:
        if _kind(file) == ".jsonl":
            for text in _json_texts(file):
                yield from _cut(text.splitlines(keepends=True), longest)
        else:
            yield from _cut(_lines(file), longest)


_JSONL = 'each line of a .jsonl file is an object like {"text": "..."}'


def _json_texts(file: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"data {file}, line {number}: not JSON: {error}", hint=_JSONL) from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DataError(f"data {file}, line {number}: no string under the key 'text'", hint=_JSONL)
        yield text


def _cut(lines: Iterable[str], longest: int) -> Iterator[Piece]:
    """Join lines to pieces: cut at a separator, or at a blank line after `longest` characters.

    Where no blank line comes within four times that, any line end will do, and a longer line is cut.
    """
    held: list[str] = []
    length = 0
    for line in _bounded(lines, 4 * longest):
        if line.strip() == SEPARATOR:
            if "".join(held).strip():
                yield Piece("".join(held), True)
            held, length = [], 0
            continue
        held.append(line)
        length += len(line)
        if length >= (longest if not line.strip() else 4 * longest):
            yield Piece("".join(held), False)
            held, length = [], 0
    if "".join(held).strip():
        yield Piece("".join(held), True)


def _bounded(lines: Iterable[str], longest: int) -> Iterator[str]:
    for line in lines:
        for start in range(0, len(line), longest):
            yield line[start : start + longest]


def _wikitext2(folder: Path) -> TextSource:
    files = [folder / "train.txt.xz", folder / "valid.txt.xz"]

    def articles(file: Path) -> Iterator[str]:
        for line in _lines(file):
            if line.startswith(" = ") and not line.startswith(" = =") and line.endswith(" = \n"):
                yield SEPARATOR
            yield line

    return TextSource(
        "wikitext2",
        _digest(f for f in files if f.exists()),
        lambda: _cut(articles(files[0]), LONGEST_PIECE),
        (lambda: _cut(articles(files[1]), LONGEST_PIECE)) if files[1].exists() else None,
    )


def _python_text() -> TextSource:
    """Return the language reference (`pydoc_data.topics`) and the standard library's docstrings."""
    return TextSource(
        f"Python {sys.version_info.major}.{sys.version_info.minor} documentation",
        hashlib.sha256(sys.version.encode()).hexdigest(),
        lambda: iter(_python_pieces()),
    )


@cache
def _python_pieces() -> tuple[Piece, ...]:
    return tuple(_read_python())


def _read_python() -> Iterator[Piece]:
    from pydoc_data import topics

    for topic in sorted(topics.topics):
        yield from _cut(topics.topics[topic].splitlines(keepends=True), LONGEST_PIECE)
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        if {"test", "tests", "site-packages", "dist-packages", "idle_test"}.isdisjoint(file.relative_to(root).parts):
            text = "\n\n".join(_docstrings(file))
            if text:
                yield from _cut(text.splitlines(keepends=True), LONGEST_PIECE)


def _docstrings(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _hub_text(source: str) -> TextSource:
    """Load `hf:NAME` or `hf:NAME:CONFIG` with the `datasets` library: its `train` split, key `text`."""
    name, _, config = source.removeprefix("hf:").partition(":")
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"'{source}' needs the datasets library", hint="install merino-edge[train]") from error
    datasets.disable_progress_bars()
    try:
        splits: dict[str, Any] = datasets.load_dataset(name, config or None)
    except (OSError, ValueError, RuntimeError) as error:  # its own errors derive from these
        raise DataError(
            f"cannot load data set '{name}': {error}", hint="is the name right, and is there a network?"
        ) from error
    if "train" not in splits or "text" not in splits["train"].column_names:
        raise DataError(f"data set '{name}' has no split 'train' with a column 'text'")

    def pieces(split: str) -> Callable[[], Iterator[Piece]]:
        def read() -> Iterator[Piece]:
            for text in splits[split]["text"]:
                yield from _cut(text.splitlines(keepends=True), LONGEST_PIECE)

        return read

    digest = hashlib.sha256("".join(s._fingerprint for s in splits.values()).encode()).hexdigest()
    return TextSource(source, digest, pieces("train"), pieces("validation") if "validation" in splits else None)
