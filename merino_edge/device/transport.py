"""How commands and bytes reach a device: the interface, and this very machine behind it.

`ssh.py` implements the same two protocols for a board over SSH; everything above them (agent,
releases, measurement) cannot tell one from the other. A transport moves bytes and starts programs;
it does not know what they say.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from merino_edge.errors import DeviceError, writing_hint

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

PIPE_BYTES = 1 << 20
STDERR_TAIL_BYTES = 16 * 1024
SEND_LIMIT_S = 30.0  # a peer that takes not one byte for so long is gone
CLOSE_LIMIT_S = 3.0
LAST_WORDS_S = 0.5  # for stderr to end once stdout has: it says why


@dataclass(frozen=True)
class Completed:
    """A finished command. A signal shows as a negative exit code, -1 where the peer did not say."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Channel(Protocol):
    """A running program's stdin and stdout. One thread may send while another receives."""

    def send(self, data: bytes) -> None:
        """Write all of `data` to the program's stdin.

        Raises:
            DeviceError: the program or the link is gone, or takes nothing for `SEND_LIMIT_S`.
        """

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        """Return at least one byte of the program's stdout as soon as there is one, b"" at its end.

        Raises:
            TimeoutError: nothing came within `timeout_s`; the channel stays usable.
            DeviceError: the link is gone (where the transport can tell that from an end).
        """

    def stderr_tail(self) -> str:
        """Return the last lines of the program's stderr, which is drained all the time."""

    def close(self) -> None:
        """End the program (stdin is closed first) and free everything; never blocks for long."""


class Transport(Protocol):
    """A way to one device."""

    @property
    def description(self) -> str:
        """Where it leads, for messages: `this machine`, `pi@kitchen.local`."""

    def run(self, argv: Sequence[str], input: bytes = b"", timeout_s: float = 30.0) -> Completed:
        """Run a command to its end. `argv` is never seen unquoted by a shell.

        Raises:
            DeviceError: it cannot be started, or does not end in time.
        """

    def open(self, argv: Sequence[str]) -> Channel:
        """Start a program and keep its stdin and stdout open."""

    def put(self, local: bytes | Path, remote_path: str, mode: int = 0o600, progress: Progress | None = None) -> None:
        """Write a file whole: under a temporary name beside it, flushed, then renamed.

        The folder is made (mode 0700) where it is missing. A leading `~/` is the device's home.
        """

    def close(self) -> None:
        """Close the way; channels end with it."""


class LocalChannel:
    """A child process of this one, in its own process group."""

    def __init__(self, argv: Sequence[str]) -> None:
        """Start the program."""
        try:
            self._child = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            raise DeviceError(f"cannot start {argv[0]} on this machine: {error.strerror or error}") from error
        assert self._child.stdin and self._child.stdout and self._child.stderr
        self._stdin, self._stdout, self._stderr = self._child.stdin, self._child.stdout, self._child.stderr
        os.set_blocking(self._stdin.fileno(), False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):  # fewer turns for a large upload
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._stdin.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._tail = bytearray()
        self._drain = threading.Thread(target=self._drain_stderr, name="stderr", daemon=True)
        self._drain.start()

    @property
    def pid(self) -> int:
        """Process id of the program."""
        return self._child.pid

    def _drain_stderr(self) -> None:
        while chunk := self._stderr.read(4096):
            self._tail += chunk
            del self._tail[:-STDERR_TAIL_BYTES]

    def send(self, data: bytes) -> None:
        """See `Channel.send`."""
        rest = memoryview(data)
        deadline = time.monotonic() + SEND_LIMIT_S
        try:
            while rest:
                _, writable, _ = select.select([], [self._stdin], [], max(0.0, deadline - time.monotonic()))
                if not writable:
                    raise DeviceError(f"the program on this machine took no byte for {SEND_LIMIT_S:g} s")
                written = os.write(self._stdin.fileno(), rest)
                rest = rest[written:]
                deadline = time.monotonic() + SEND_LIMIT_S
        except (BrokenPipeError, ValueError) as error:
            raise DeviceError("the program on this machine has ended", hint=self.stderr_tail() or None) from error

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        """See `Channel.recv`."""
        try:
            readable, _, _ = select.select([self._stdout], [], [], timeout_s)
            if not readable:
                raise TimeoutError(f"nothing came within {timeout_s:g} s")
            data = os.read(self._stdout.fileno(), max_bytes)
            if not data:
                self._drain.join(LAST_WORDS_S)
            return data
        except (ValueError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            return b""  # closed by us meanwhile

    def stderr_tail(self) -> str:
        """See `Channel.stderr_tail`."""
        return bytes(self._tail).decode("utf-8", "replace").strip()

    def close(self) -> None:
        """See `Channel.close`."""
        self._stdin.close()
        try:
            self._child.wait(CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            _kill_group(self._child)
        self._drain.join(CLOSE_LIMIT_S)
        self._stdout.close()
        if not self._drain.is_alive():
            self._stderr.close()


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and what it started; we made it the leader of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


class LocalTransport:
    """This very machine, driven as if it were a board."""

    description = "this machine"

    def run(self, argv: Sequence[str], input: bytes = b"", timeout_s: float = 30.0) -> Completed:
        """See `Transport.run`."""
        try:
            with subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            ) as child:
                try:
                    out, err = child.communicate(input, timeout_s)
                except subprocess.TimeoutExpired as error:
                    _kill_group(child)
                    raise DeviceError(f"{argv[0]} on this machine did not end within {timeout_s:g} s") from error
                return Completed(child.returncode, out, err)
        except OSError as error:
            raise DeviceError(f"cannot start {argv[0]} on this machine: {error.strerror or error}") from error

    def open(self, argv: Sequence[str]) -> LocalChannel:
        """See `Transport.open`."""
        return LocalChannel(argv)

    def put(self, local: bytes | Path, remote_path: str, mode: int = 0o600, progress: Progress | None = None) -> None:
        """See `Transport.put`."""
        target = Path(remote_path).expanduser()
        content = local if isinstance(local, bytes) else local.read_bytes()
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".put-", dir=target.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    os.fchmod(stream.fileno(), mode)
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, target)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise DeviceError(f"cannot write {target}: {error.strerror or error}", hint=writing_hint(error)) from error
        if progress is not None:
            progress(len(content), len(content))

    def close(self) -> None:
        """See `Transport.close`."""
