"""Releases: installed under a journal, switched by one rename, rolled back, collected.

An installation goes

    journal -> releases/<n>.tmp (links, flushed) -> trial in a child -> releases/<n> -> current -> no journal

and may be cut between any two steps: before the rename of the folder the next start undoes it,
after it (the trial was passed) the next start finishes it. `current` always names a whole release.

Each release carries `run.py`, which needs no host. It finds the agent's program and the runtimes that
`release.json` names; collection never removes either.
"""

from __future__ import annotations

import hashlib
import os
import pkgutil
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Callable, Iterable

from merino_edge.agent.errors import AgentError
from merino_edge.agent.frames import FrameError, parse_object
from merino_edge.agent.store import (
    Store,
    check_digest,
    read_json,
    sha256_file,
    sync_folder,
    whole_number,
    write_file,
    write_json,
)

MANIFEST = "manifest.json"
RELEASE = "release.json"
RUN = "run.py"


def manifest_files(manifest: dict[str, object]) -> list[tuple[str, str, int]]:
    """Return (name, digest, bytes) of each file that a manifest names."""
    files = manifest.get("files")
    if not isinstance(files, list) or not files:
        raise AgentError("request", "the manifest names no files")
    result = []
    for entry in files:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise AgentError("request", "the manifest's files are no list of names, digests and sizes")
        if entry["name"] in (MANIFEST, RELEASE, RUN):
            raise AgentError("request", f"a bundle's file cannot be called {entry['name']}")
        result.append((entry["name"], check_digest(entry.get("sha256")), whole_number(entry.get("bytes"), "bytes")))
    return result


class Releases:
    """What is installed in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.root / "releases"
        self.link = store.root / "current"
        self.journal = store.root / "journal"

    def numbers(self) -> list[int]:
        """Return the numbers of all whole releases."""
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and (p / RELEASE).is_file())

    def current(self) -> int | None:
        """Return the number of the release in use."""
        try:
            name = os.path.basename(os.readlink(str(self.link)))
        except FileNotFoundError:
            return None
        return int(name) if name.isdigit() and (self.folder / name).is_dir() else None

    def path(self, number: int) -> Path:
        """Return a release's folder."""
        if number not in self.numbers():
            known = ", ".join(str(n) for n in self.numbers()) or "none"
            raise AgentError("missing", f"there is no release {number} on the device; there are: {known}")
        return self.folder / str(number)

    def describe(self, number: int) -> dict[str, object]:
        """Return what `release.json` and `manifest.json` say of a release."""
        folder = self.path(number)
        return {**read_json(folder / RELEASE), "manifest": read_json(folder / MANIFEST)}

    def was_cut(self) -> bool:
        """Say whether an installation or collection was cut, or is under way."""
        return self.journal.exists() or any(True for p in self.folder.iterdir() if not p.name.isdigit())

    def recover(self) -> str | None:
        """Finish or undo what a cut installation left; call it under the lock.

        Returns:
            What was done, None where there was nothing to do.
        """
        leftovers = [*self.folder.glob("*.tmp"), *self.folder.glob("*.old")]
        if leftovers or self.journal.exists():
            sync_folder(self.folder)  # who was cut may not have come to it: names must not come back half emptied
        for leftover in leftovers:
            shutil.rmtree(str(leftover))
        if not self.journal.exists():
            return None
        try:
            number = whole_number(read_json(self.journal).get("release"), "release", 1)
        except AgentError:
            number = 0  # the journal itself was torn: nothing had begun
        done = "undone"
        if number in self.numbers():
            self._switch(number)
            done = "finished"
        self.journal.unlink()
        sync_folder(self.store.root)
        return f"an interrupted installation of release {number} was {done}"

    def stage(self, manifest_digest: str) -> Path:
        """Lay a pushed bundle out for a measurement, checked, without making it a release; under the lock."""
        manifest, files = self._checked_files(manifest_digest)
        del manifest
        folder = self.store.root / "stage" / manifest_digest
        for leftover in folder.parent.iterdir():
            shutil.rmtree(str(leftover))
        self.store.lay_out(folder, files)
        return folder

    def install(
        self,
        manifest_digest: str,
        runtime: str,
        trial: Callable[[Path], dict[str, object]],
        agent: str | None = None,
        tokenizers: str | None = None,
    ) -> dict[str, object]:
        """Install a pushed bundle and switch to it; call it under the lock.

        Args:
            manifest_digest: The object that is its manifest; all others must be here.
            runtime: The runtime it is to run with.
            trial: Opens the laid-out folder, runs it, raises where it answers wrongly.
            agent: Digest of the agent's program, for the release's own `run.py`.
            tokenizers: The runtime that `run.py` tokenizes with; None where it cannot.
        """
        self.recover()
        manifest, files = self._checked_files(manifest_digest)
        former = self.current()
        number = max([0, *self.numbers()]) + 1
        write_json(self.journal, {"release": number, "manifest": manifest_digest})
        temporary = self.folder / f"{number}.tmp"
        try:
            self.store.lay_out(temporary, files)
            run = pkgutil.get_data("merino_edge.agent", RUN) or b""
            write_file(temporary / RUN, run)
            note: dict[str, object] = {
                "release": number,
                "runtime": runtime,
                "manifest_sha256": manifest_digest,
                "installed_at": time.time(),
                "format": manifest.get("format"),
                "recipe": manifest.get("recipe"),
                "agent": agent,
                "tokenizers": tokenizers,
                "run_sha256": hashlib.sha256(run).hexdigest(),
            }
            note["trial"] = trial(temporary)
            write_json(temporary / RELEASE, note)
            os.rename(str(temporary), str(self.folder / str(number)))
            sync_folder(self.folder)
            self._switch(number)
        finally:
            if temporary.exists():
                shutil.rmtree(str(temporary))
            self.journal.unlink()
            sync_folder(self.store.root)
        return {"release": number, "sha256": manifest_digest, "previous": former}

    def activate(self, number: int) -> dict[str, object]:
        """Switch to an installed release after checking its files; call it under the lock."""
        self.verify(number)
        former = self.current()
        self._switch(number)
        return {"release": number, "previous": former}

    def verify(self, number: int) -> None:
        """Raise where a release's files are not those its manifest names; a damaged object is removed."""
        folder = self.path(number)
        note = read_json(folder / RELEASE)
        if sha256_file(folder / MANIFEST) != note.get("manifest_sha256"):
            raise AgentError("corrupt", f"the manifest of release {number} was damaged", "deploy again")
        run = folder / RUN  # a release of an earlier agent has none
        if "run_sha256" in note and not (run.is_file() and sha256_file(run) == note["run_sha256"]):
            raise AgentError("corrupt", f"{RUN} of release {number} was damaged on the disk", "deploy again")
        for name, digest, size in manifest_files(read_json(folder / MANIFEST)):
            path = folder / name
            if not path.is_file() or path.stat().st_size != size or sha256_file(path) != digest:
                with suppress(AgentError):
                    self.store.verify(digest, size)  # often the same file: removed there, so that it is sent again
                raise AgentError("corrupt", f"{name} of release {number} was damaged on the disk", "deploy again")

    def collect(self, keep: int | None) -> dict[str, object]:
        """Remove what no release needs; call it under the lock.

        Args:
            keep: Keep only the newest so many releases (and the current one); None keeps all.
        """
        self.recover()
        numbers, current = self.numbers(), self.current()
        dropped = [] if keep is None else [n for n in numbers[: max(0, len(numbers) - keep)] if n != current]
        for number in dropped:
            old = self.folder / f"{number}.old"
            os.rename(str(self.folder / str(number)), str(old))
            sync_folder(self.folder)  # else a power cut may bring the name back, and not what lay below it
            shutil.rmtree(str(old))
        needed = self._needed()
        shutil.rmtree(str(self.store.root / "stage"))
        (self.store.root / "stage").mkdir(mode=0o700)
        freed = 0
        for path in (self.store.root / "objects").iterdir():
            if path.name not in needed:
                freed += path.stat().st_size
                path.unlink()
        return {"releases_removed": dropped, "bytes_freed": freed}

    def spare(self, wanted: Iterable[str]) -> list[tuple[float, int, Path]]:
        """Return (last change, bytes, path) of objects that only measurements needed, the oldest first.

        Args:
            wanted: Objects that are about to be used or uploaded further, and so not spare.
        """
        kept = self._needed() | set(wanted)
        found = []
        for path in (self.store.root / "objects").iterdir():
            if path.name.replace(".part", "") not in kept:
                facts = path.stat()
                found.append((facts.st_mtime, facts.st_size, path))
        return sorted(found)

    def trim(self, limit: int, wanted: Iterable[str]) -> None:
        """Remove the oldest spare objects beyond so many bytes, unless somebody is at work."""
        if sum(size for _, size, _ in self.spare(wanted)) <= limit:
            return  # without the lock, so that nobody finds the device busy for nothing
        with self.store.lock("tidying"):
            found = self.spare(wanted)
            total = sum(size for _, size, _ in found)
            for _, size, path in found:
                if total > limit:
                    path.unlink()
                    total -= size

    def _needed(self) -> set[str]:
        """Return the objects that releases consist of."""
        needed = set()
        for number in self.numbers():
            note = self.describe(number)
            needed.add(str(note["manifest_sha256"]))
            manifest = note["manifest"]
            assert isinstance(manifest, dict)
            needed.update(digest for _, digest, _ in manifest_files(manifest))
        return needed

    def _checked_files(self, manifest_digest: str) -> tuple[dict[str, object], list[tuple[str, str]]]:
        path = self.store.object_path(manifest_digest)
        if not path.is_file():
            raise AgentError("missing", "the bundle's manifest is not on the device", "send it again")
        self.store.verify(manifest_digest, path.stat().st_size)
        try:
            manifest = parse_object(path.read_bytes())
        except FrameError as error:
            raise AgentError("corrupt", f"the bundle's manifest is no JSON: {error}", "export again") from error
        files = manifest_files(manifest)
        for _, digest, size in files:
            self.store.verify(digest, size)
        return manifest, [*[(name, digest) for name, digest, _ in files], (MANIFEST, manifest_digest)]

    def _switch(self, number: int) -> None:
        """Point `current` at a release by one rename."""
        if not os.path.lexists(str(self.link)):
            self.store.sync_way()
        temporary = self.store.root / "current.tmp"
        if os.path.lexists(str(temporary)):
            temporary.unlink()
        os.symlink(f"releases/{number}", str(temporary))
        sync_folder(self.store.root)
        os.replace(str(temporary), str(self.link))
        sync_folder(self.store.root)
