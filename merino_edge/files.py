"""How files are read and written: whole or not at all.

A file is written under a temporary name in the same folder, flushed to the disk and renamed; a log
is appended to line by line. Reading checks that a file is what it says: UTF-8, JSON without NaN,
the schema version, no unknown key.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from merino_edge.errors import InvalidFileError, MerinoEdgeError, writing_hint

SCHEMA_VERSION = 1
UNLOCKED_S = 1.0  # from making a folder to locking it takes less by far


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or leave the old one untouched.

    Raises:
        MerinoEdgeError: the disk is full, or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    with open_atomic(path) as stream:
        stream.write(data)


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of `path` for writing; rename it over `path` if all went well."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise MerinoEdgeError(f"cannot write {path}: {error.strerror or error}", hint=writing_hint(error)) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def building_folder(parent: Path, name: str) -> Iterator[Path]:
    """Make a hidden folder beside where it will belong; what is not moved into place is removed at the end.

    It is locked while its writer lives, so that what killed writers left behind is known and removed first.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent))
    handle = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems know no locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield temporary
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    aside = [old for old in parent.glob(".*.old") if (parent / old.name[1 : -len(".old")]).exists()]
    for left in (*parent.glob(".*.tmp"), *aside):
        with suppress(OSError):  # no folder, or gone meanwhile, or its writer holds the lock
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if time.time() - os.fstat(handle).st_mtime > UNLOCKED_S:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)


def move_into_place(temporary: Path, folder: Path) -> None:
    """Rename a complete folder to where it belongs; an older one of that name stays until then."""
    os.chmod(temporary, 0o755)  # noqa: S103  mkdtemp makes it private; what is complete is for reading
    old = folder.parent / f".{folder.name}.old"
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except OSError:
        with suppress(OSError):
            os.rename(old, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def canonical_json(value: Any) -> str:
    """Return the one spelling of a JSON value that digests are made of: sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an indented JSON document with its `schema_version`, atomically."""
    document = {"schema_version": SCHEMA_VERSION, **value}
    write_atomic(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, what: str = "file") -> dict[str, Any]:
    """Read a JSON object written by `write_json`; `schema_version` is checked and taken off.

    Args:
        path: The file.
        what: What the file is meant to be, for the error ("profile", "manifest").
    """
    value = parse_json(read_text(path, what), f"{what} {path}")
    version = value.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise InvalidFileError(
            f"{what} {path}: schema_version is {version!r}, this release reads {SCHEMA_VERSION}",
            hint="write it again with this release, or use the release that wrote it",
        )
    return value


def parse_json(text: str, where: str) -> dict[str, Any]:
    """Parse one JSON object, refusing NaN, infinities and duplicate keys."""

    def no_constant(word: str) -> float:
        raise ValueError(f"{word} is not a number that JSON knows")

    def finite(word: str) -> float:
        number = float(word)
        if not math.isfinite(number):
            raise ValueError(f"{word} is out of range")
        return number

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return result

    try:
        value = json.loads(text, parse_constant=no_constant, parse_float=finite, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidFileError(f"{where} must hold one JSON object, not {type(value).__name__}")
    return value


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 text; whatever is wrong with the file is an `InvalidFileError` that names it."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidFileError(f"{what} {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{what} {path} is not UTF-8 text") from error
    except OSError as error:
        raise InvalidFileError(f"cannot read {what} {path}: {error.strerror or error}") from error


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON record to a log, under a lock, in one flushed write.

    A line that a power cut left torn is cut off first.
    """
    line = (json.dumps({"schema_version": SCHEMA_VERSION, **record}, allow_nan=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            end = stream.seek(0, os.SEEK_END)
            if end:
                stream.seek(end - 1)
                if stream.read(1) != b"\n":
                    stream.seek(0)
                    end = stream.read().rfind(b"\n") + 1
                    stream.truncate(end)
            try:
                if stream.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(stream.fileno(), end)  # a full disk must not leave half a line
                raise
            os.fsync(stream.fileno())
    except OSError as error:
        raise MerinoEdgeError(
            f"cannot append to {path}: {error.strerror or error}", hint=writing_hint(error)
        ) from error


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole log at once, atomically."""
    lines = (json.dumps({"schema_version": SCHEMA_VERSION, **record}, allow_nan=False) + "\n" for record in records)
    write_atomic(path, "".join(lines))


def read_lines(path: Path, what: str = "log") -> list[dict[str, Any]]:
    """Read the records of a log; a torn last line is passed over, any other damage is an error."""
    if not path.exists():
        return []
    lines = read_text(path, what).split("\n")
    complete, torn = lines[:-1], lines[-1]
    del torn  # what follows the last newline was never finished
    records = []
    for number, line in enumerate(complete, start=1):
        record = parse_json(line, f"{what} {path}, line {number}")
        if record.pop("schema_version", None) != SCHEMA_VERSION:
            raise InvalidFileError(f"{what} {path}, line {number}: schema_version is not {SCHEMA_VERSION}")
        records.append(record)
    return records


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InvalidFileError(f"cannot read {path}: {error.strerror or error}") from error
