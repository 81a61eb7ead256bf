"""Runtimes: each a private folder of unzipped wheels (or what is installed anyway), checked before use.

`runtimes/<name>.json` says which interpreter and folder a runtime is and what the check found. A
release names its runtime, so a rollback finds the one it was tried with.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import Callable

from merino_edge.agent.errors import AgentError
from merino_edge.agent.store import Store, check_digest, read_json, sync_folder, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_MAX_UNZIPPED_BYTES = 2 << 30


def check_name(value: object) -> str:
    """Return a runtime's name that is safe as a file name."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise AgentError("request", f"{value!r} is no name of a runtime")
    return value


class Runtimes:
    """The runtimes of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.root / "runtimes"

    def all(self) -> list[dict[str, object]]:
        """Return the records of all checked runtimes."""
        return [read_json(path) for path in sorted(self.folder.glob("*.json"))]

    def get(self, name: object) -> tuple[str, str | None]:
        """Return (interpreter, folder or None) of a runtime.

        Raises:
            AgentError: it is not here.
        """
        path = self.folder / (check_name(name) + ".json")
        if not path.is_file():
            raise AgentError("missing", f"runtime {name} is not on the device", "deploy again")
        record = read_json(path)
        folder = record.get("folder")
        return str(record["python"]), None if folder is None else str(self.folder / check_name(folder))

    def add(
        self, name: object, folder: str | None, check: Callable[[str, str | None], dict[str, object]]
    ) -> dict[str, object]:
        """Check a runtime in a child and keep its record.

        Args:
            name: Its name.
            folder: Name of its folder here; None for what the interpreter finds by itself.
            check: Runs the check with (interpreter, path).
        """
        path = None if folder is None else str(self.folder / folder)
        record_file = self.folder / (check_name(name) + ".json")
        try:
            found = check(sys.executable, path)
        except AgentError:
            if path is not None and not record_file.exists():  # another version comes next: make room
                shutil.rmtree(path, ignore_errors=True)
            raise
        record = {"name": check_name(name), "python": sys.executable, "folder": folder, **found}
        write_json(record_file, record)
        return record

    def unzip(self, name: object, wheels: list[tuple[str, str]]) -> str:
        """Unzip pushed wheels into one private folder and return its name.

        Args:
            name: Of the folder.
            wheels: (file name, digest) of each wheel.
        """
        folder = self.folder / check_name(name)
        if folder.is_dir():
            return folder.name
        temporary = self.folder / (folder.name + ".tmp")
        if temporary.exists():
            shutil.rmtree(str(temporary))
        temporary.mkdir(mode=0o700)
        try:
            for wheel, digest in wheels:
                path = self.store.object_path(check_digest(digest))
                if not path.is_file():
                    raise AgentError("missing", f"{wheel} is not on the device", "send it again")
                self.store.verify(digest, path.stat().st_size)
                _unzip_wheel(path, wheel, temporary, self.store)
            _sync_tree(temporary)
            os.rename(str(temporary), str(folder))
            sync_folder(self.folder)
        finally:
            if temporary.exists():
                shutil.rmtree(str(temporary))
        return folder.name

    def forget_wheels(self, wheels: list[tuple[str, str]]) -> None:
        """Remove pushed wheels: unzipped and checked, they only take room."""
        for _, digest in wheels:
            if self.store.object_path(digest).exists():
                self.store.object_path(digest).unlink()


def _unzip_wheel(path: Path, wheel: str, target: Path, store: Store) -> None:
    """Unpack one wheel; of its `.data` only `purelib` and `platlib` are needed, at the top."""
    try:
        with zipfile.ZipFile(str(path)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > _MAX_UNZIPPED_BYTES:
                raise AgentError("request", f"{wheel} unzips to {size} bytes, which is no runtime for a board")
            store.check_space(size)
            for entry in entries:
                parts = PurePosixPath(entry.filename).parts
                if not parts or entry.filename.startswith("/") or ".." in parts or "\0" in entry.filename:
                    raise AgentError("corrupt", f"{wheel} holds a file that leaves its folder: {entry.filename!r}")
                if parts[0].endswith(".data"):
                    if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
                        continue
                    parts = parts[2:]
                if entry.filename.endswith("/"):
                    continue
                place = target.joinpath(*parts)
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with archive.open(entry) as source, open(str(place), "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as error:
        raise AgentError("corrupt", f"{wheel} is no wheel: {error}", "download it again") from error


def _sync_tree(folder: Path) -> None:
    """Flush a tree: one sync of everything is cheaper than an fsync for each of a thousand small files."""
    os.sync()
    sync_folder(folder)
