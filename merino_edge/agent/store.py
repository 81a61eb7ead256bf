"""The agent's folder: objects by digest, the lock, and how files reach the disk for certain.

    objects/<sha256>        whole, checked files; <sha256>.part is an upload that can be resumed
    releases/<n>/           hard links to objects, manifest.json, release.json
    current                 symlink to a release
    runtimes/               see runtimes.py
    stage/<sha256>/         a bundle laid out for a measurement, not for keeping
    journal, lock           what an installation was doing; who is working

Everything is mode 0700/0600 and belongs to the one user.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator

from merino_edge.agent.errors import AgentError
from merino_edge.agent.frames import FrameError, Payload, parse_object

SHA256 = re.compile(r"[0-9a-f]{64}")
FOLDERS = ("objects", "releases", "runtimes", "stage")
SPARE_BYTES = 8 << 20  # left free, so that journal and logs can always be written
FLUSH_AHEAD_BYTES = 8 << 20  # of an upload, before the disk is told to begin
FLUSH_REST_S = 0.1  # from one such flush to the next: each ends in a commit that holds up what is being written
UPLOAD_WAIT_S = 12.0  # for another host that sends the same file
_CHUNK = 1 << 20


def disk_error(error: OSError, path: object) -> AgentError:
    """Say in one sentence what the disk refused, and what helps."""
    hint = {
        errno.ENOSPC: "free some space on the device, for example with: merino-edge deploy --keep 1",
        errno.EDQUOT: "the user's quota on the device is used up",
        errno.EROFS: "the device's file system is read-only; its card may be failing",
        errno.EMFILE: "the device allows too few open files (ulimit -n)",
        errno.EIO: "the device's disk or card may be failing",
    }.get(error.errno or 0, "look at the device's disk and the folder's owner")
    return AgentError("disk", f"the device's disk refuses {path}: {error.strerror or error}", hint)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file under a temporary name, flush it, rename it, flush the folder."""
    temporary = path.with_name(path.name + ".tmp")
    handle = os.open(str(temporary), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(str(temporary), str(path))
    sync_folder(path.parent)


def write_json(path: Path, value: dict[str, object]) -> None:
    """Write a JSON object for certain."""
    write_file(path, json.dumps(value, allow_nan=False).encode("utf-8"))


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object that this agent wrote."""
    try:
        return parse_object(path.read_bytes())
    except FileNotFoundError:
        raise AgentError("missing", f"{path} does not exist") from None
    except FrameError as error:
        raise AgentError("corrupt", f"{path} is damaged: {error}", "deploy again") from error


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(str(path), "rb") as stream:
        while True:
            chunk = stream.read(_CHUNK)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)


def check_digest(value: object) -> str:
    """Return a digest that is safe as a file name."""
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise AgentError("request", f"{value!r} is no SHA-256")
    return value


def whole_number(value: object, name: str, least: int = 0) -> int:
    """Return a whole number of a request."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise AgentError("request", f"{name} must be a whole number from {least}, not {value!r}")
    return value


def positive_number(value: object, name: str) -> float | None:
    """Return a finite number above 0 of a request, None where it names none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise AgentError("request", f"{name} must be a number above 0, not {value!r}")
    return float(value)


class Part:
    """An upload under way, hashed as it grows, so that a slow card is not read once more.

    Args:
        stream: The file; what it holds already counts.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._flusher: threading.Thread | None = None
        self._unflushed = 0
        self._rest_until = 0.0
        self._flush_error: OSError | None = None
        self.hash = hashlib.sha256()
        while True:
            chunk = stream.read(_CHUNK)
            if not chunk:
                break
            self.hash.update(chunk)

    def write(self, chunk: Payload) -> None:
        """Append bytes; they survive the death of this process."""
        self._stream.write(chunk)
        self._stream.flush()
        self.hash.update(chunk)
        self._unflushed += len(chunk)
        idle = self._flusher is None or not self._flusher.is_alive()
        if idle and self._unflushed >= FLUSH_AHEAD_BYTES and time.monotonic() >= self._rest_until:
            self._unflushed = 0
            self._flusher = threading.Thread(target=self._flush_ahead, daemon=True)
            self._flusher.start()

    def _flush_ahead(self) -> None:
        """Let the disk work while more bytes come, so that it has little left to do at the end."""
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            self._flush_error = error  # the kernel tells it once only
        self._rest_until = time.monotonic() + FLUSH_REST_S

    def settle(self) -> None:
        """Wait for what is being flushed; the file may be closed afterwards."""
        if self._flusher is not None:
            self._flusher.join()

    def flush(self) -> None:
        """Make them survive a power cut."""
        self.settle()
        os.fsync(self._stream.fileno())
        if self._flush_error is not None:
            raise self._flush_error


class Store:
    """The agent's folder on the device.

    Args:
        root: The folder; made with mode 0700 where it is missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            facts = os.lstat(str(root))
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
                raise AgentError(
                    "disk", f"{root} is a link or belongs to somebody else", "choose another folder with --root"
                )
            os.chmod(str(root), 0o700)
            for name in FOLDERS:
                (root / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise disk_error(error, root) from error

    def sync_way(self) -> None:
        """Flush the folders that lead here: whoever made them, a power cut must not take the whole store away."""
        for folder in (self.root, *self.root.resolve().parents):
            try:
                sync_folder(folder)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS):
                    raise

    def object_path(self, digest: str) -> Path:
        """Return where an object lies, or would lie."""
        return self.root / "objects" / check_digest(digest)

    def missing(self, wanted: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Return (digest, bytes already here) of each wanted object that is not whole."""
        result = []
        for digest, size in wanted:
            path = self.object_path(digest)
            if path.is_file() and path.stat().st_size == size:
                continue
            part = path.with_name(digest + ".part")
            held = part.stat().st_size if part.is_file() else 0
            result.append((digest, held if held <= size else 0))
        return result

    def check_space(self, needed: int) -> None:
        """Refuse what will not fit, before a byte of it is written."""
        facts = os.statvfs(str(self.root))
        free = facts.f_bavail * facts.f_frsize
        if needed + SPARE_BYTES > free:
            raise AgentError(
                "disk",
                f"{needed / 1e6:.1f} MB are to be written, {free / 1e6:.1f} MB are free on the device, "
                f"and {SPARE_BYTES / 1e6:.1f} MB of them must stay free",
                "free some space on the device, for example with: merino-edge deploy --keep 1",
            )
        if facts.f_files and facts.f_favail < 64:
            raise AgentError("disk", "the device's file system has no free inodes", "remove small files on the device")

    @contextmanager
    def open_part(self, digest: str, offset: int) -> Iterator[Part]:
        """Open an upload for appending at `offset`; what lies there already is hashed."""
        part = self.object_path(digest).with_name(digest + ".part")
        with os.fdopen(self._take(part), "r+b") as stream:
            held = stream.seek(0, os.SEEK_END)
            if offset > held:
                raise AgentError("request", f"the upload of {digest} stands at {held} bytes, not at {offset}")
            stream.seek(0)
            stream.truncate(offset)
            opened = Part(stream)
            try:
                yield opened
            finally:
                opened.settle()

    def _take(self, part: Path) -> int:
        """Open an upload for this process alone; where another host sends the same file, wait a little for it.

        The wait is longer than an agent lives whose host is gone.
        """
        deadline = time.monotonic() + UPLOAD_WAIT_S
        while True:
            handle = os.open(str(part), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if part.is_file() and os.path.samestat(os.fstat(handle), os.stat(str(part))):
                    return handle
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.ENOENT):
                    os.close(handle)
                    raise
            os.close(handle)
            if time.monotonic() > deadline:
                raise AgentError("busy", f"another host sends the same file ({part.name[:12]}) to the device")
            time.sleep(0.1)

    def finish_part(self, digest: str, part: Part) -> None:
        """Make an upload an object, flushed; a wrong one is removed."""
        path = self.object_path(digest)
        place = path.with_name(digest + ".part")
        if part.hash.hexdigest() != digest:
            place.unlink()
            raise AgentError("corrupt", f"what arrived as {digest[:12]} has another SHA-256", "send it again")
        part.flush()
        os.replace(str(place), str(path))
        sync_folder(path.parent)

    def verify(self, digest: str, size: int) -> None:
        """Raise where an object is not here or not what it was; a damaged one is removed."""
        path = self.object_path(digest)
        if not path.is_file():
            raise AgentError("missing", f"object {digest[:12]} is not on the device", "send it again")
        if path.stat().st_size != size or sha256_file(path) != digest:
            path.unlink()
            raise AgentError(
                "corrupt", f"object {digest[:12]} was damaged on the device's disk", "the same command sends it again"
            )

    def lay_out(self, folder: Path, files: Iterable[tuple[str, str]]) -> None:
        """Make a folder of hard links (copies where the file system has none) to objects, flushed.

        Args:
            folder: Must not exist.
            files: (name, digest) pairs.
        """
        folder.mkdir(mode=0o700)
        for name, digest in files:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise AgentError("request", f"{name!r} is no name for a file of a bundle")
            source, target = str(self.object_path(digest)), str(folder / name)
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                    raise
                shutil.copyfile(source, target)
                handle = os.open(target, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        sync_folder(folder)

    @contextmanager
    def lock(self, what: str) -> Iterator[int]:
        """Hold the device for one piece of work; yields the descriptor, for the child to hold as well.

        The kernel frees it when the last holder ends, however it ends.

        Raises:
            AgentError: `busy`, with the holder's process id and since when.
        """
        handle = os.open(str(self.root / "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise _busy(os.pread(handle, 4096, 0)) from None
            try:
                note = json.dumps({"pid": os.getpid(), "what": what, "since": time.time()}).encode("utf-8")
                os.ftruncate(handle, 0)
                os.pwrite(handle, note, 0)
                yield handle
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)  # for a kept child as well
        finally:
            os.close(handle)


def _busy(note: bytes) -> AgentError:
    try:
        holder = parse_object(note)
    except FrameError:
        holder = {}
    since = holder.get("since")
    when = time.strftime("%H:%M:%S", time.localtime(since)) if isinstance(since, float) else "an unknown time"
    return AgentError(
        "busy",
        f"process {holder.get('pid', 'unknown')} works on the device ({holder.get('what', 'unknown')}) since {when}",
        "wait until it has ended, or end it on the device",
        pid=holder.get("pid"),
        since=since,
        what=holder.get("what"),
    )
