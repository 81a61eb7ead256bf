"""What both ways over SSH share: dialling, how a file is put whole, how a failure is told, and whom to ask.

A file goes to the device under a temporary name that carries its SHA-256, is checked and flushed there, and renamed. A
transfer that was cut is taken up where it stopped: the device tells how much it has, and the hash of that.
"""

from __future__ import annotations

import hashlib
import io
import re
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from merino_edge.agent.frames import Pulse
from merino_edge.device.records import clean_text
from merino_edge.device.ssh_config import SshSettings
from merino_edge.device.transport import Channel, Completed, Progress
from merino_edge.errors import DeviceError

Ask = Callable[[str, bool], str | None]
"""Asks the person at the terminal: the question, and whether the answer is secret. None where they would not say."""

CONNECT_LIMIT_S = 10.0
DEAD_AFTER_S = 8.0  # a peer that shows no sign of life for so long is gone
PUT_ANSWER_LIMIT_S = 120.0  # hashing and flushing a large file on an SD card takes its time
OUTPUT_LIMIT_BYTES = 64 * 2**20  # what one command may say before it is cut off
CHUNK_BYTES = 2**20
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ,-./:=@_")
LEAST_PACKET_BYTES = 28  # of an answer to a heartbeat; fewer are no sign of life

MAX_NOISE_LINES = 1000  # of a start-up file of the login shell, before the device's first word

# Arguments: target, mode, bytes, SHA-256. Says `put-SHA-256 have BYTES SHA-256`, reads from where to go on, then the
# bytes. Two hosts that send the same file at once do each other no harm: who comes second finds it there.
PUT_SCRIPT = r"""
set -eu; umask 077
target=$1 mode=$2 size=$3 sum=$4
case $target in '~/'*) target=$HOME/${target#'~/'} ;; esac
flush() { if sync --version >/dev/null 2>&1; then sync "$1"; else sync; fi; }
hash() { sha256sum < "$1" | cut -c1-64; }
folder=$(dirname "$target")
mkdir -p "$folder"
if [ -d "$target" ]; then echo "$target is a folder" >&2; exit 73; fi
find "$folder" -maxdepth 1 -name '.put-*' -mtime +2 -exec rm -f {} + 2>/dev/null || :
part=$folder/.put-$sum
if command -v flock >/dev/null; then
    exec 9>>"$part"
    if ! flock -n 9; then
        if ! flock -w 3 9 && [ $(($(date +%s) - $(stat -c %Y "$part"))) -lt 5 ]; then part=$part.$$; fi
        if [ -f "$target" ] && [ "$(hash "$target")" = "$sum" ]; then
            echo "put-$sum have $size $sum"; read -r from; echo done; exit
        fi
    fi
fi
have=0 seen=-
if [ -f "$part" ]; then have=$(($(wc -c < "$part"))); fi
if [ "$have" -gt 0 ]; then seen=$(hash "$part"); fi
echo "put-$sum have $have $seen"
read -r from
if [ "$from" = 0 ]; then
    seen=$(tee "$part" | sha256sum | cut -c1-64)
else
    cat >> "$part"
    seen=$(hash "$part")
fi
have=$(($(wc -c < "$part")))
if [ "$have" -lt "$size" ]; then echo "only $have of $size bytes came" >&2; exit 75; fi
if [ "$seen" != "$sum" ]; then rm -f "$part"; echo 'what came is damaged' >&2; exit 74; fi
chmod "$mode" "$part"
flush "$part"
mv -f "$part" "$target"
flush "$folder"
echo done
"""


class RemoteChannel(Channel, Protocol):
    """A program on the device: a channel whose end can be waited for."""

    def end_input(self) -> None:
        """Close the program's stdin; its stdout stays open."""

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, negative for a signal or where none was told; None where it goes on running."""


def dial(settings: SshSettings) -> tuple[socket.socket, subprocess.Popen[bytes] | None]:
    """Open a byte stream to a host: by TCP, or through a program of the user's (ProxyCommand), returned as well."""
    if settings.proxy_command:
        ours, theirs = socket.socketpair()
        with theirs:
            words = ["/bin/sh", "-c", f"exec {settings.proxy_command}"]  # the user's own words, a shell's as in ssh
            return ours, subprocess.Popen(words, stdin=theirs.fileno(), stdout=theirs.fileno(), start_new_session=True)
    try:
        sock = socket.create_connection((settings.host, settings.port), timeout=CONNECT_LIMIT_S)
    except OSError as error:
        raise unreachable(settings, error.strerror or str(error)) from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # the kernel gives up what is not acknowledged
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD_AFTER_S * 1000))
    return sock, None


class WatchedSocket:
    """A socket, or a channel that serves as one, that knows when it last heard something."""

    def __init__(self, sock: Any, helper: subprocess.Popen[bytes] | None = None) -> None:
        """Begin to listen; `helper` is the program that the bytes go through."""
        self._sock = sock
        self._helper = helper
        self.begin_to_listen()

    def begin_to_listen(self) -> None:
        """Count the silence from now on."""
        self.pulse = Pulse(LEAST_PACKET_BYTES)

    def recv(self, size: int) -> bytes:
        """Receive, and note it."""
        data: bytes = self._sock.recv(size)
        self.pulse.note(len(data))
        return data

    def kill(self) -> None:
        """End it at once, and the program behind it."""
        with suppress(OSError, EOFError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with suppress(OSError, EOFError):
            self._sock.close()
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def unreachable(settings: SshSettings, reason: str) -> DeviceError:
    """Say why a host cannot be reached, and how to look further."""
    where = settings.description if settings.host == settings.name else f"{settings.description} ({settings.host})"
    if "Name or service" in reason or "nodename" in reason or "name resolution" in reason:
        hint = "check the name, or give the address: pi@192.0.2.7"
    elif "refused" in reason:
        hint = f"is sshd running there, at port {settings.port}? On the device: sudo systemctl enable --now ssh"
    else:
        hint = f"check its power and network, then try by hand: ssh {settings.address_words}"
    return DeviceError(f"cannot reach {where}: {reason}", hint=hint)


def refused_login(settings: SshSettings, reason: str, have_key: bool = True) -> DeviceError:
    """Say that nobody is let in, and what to do."""
    copy = f"ssh-copy-id {settings.address_words}"
    hint = copy if have_key else f"ssh-keygen -t ed25519, then {copy}"
    return DeviceError(f"{settings.description} refuses the login: {reason}", hint=hint)


def shell_command(argv: Sequence[str]) -> str:
    """Return one line that any login shell understands as the same words: sh, zsh, fish, csh, a restricted one.

    The words are written for `sh` with all but plain characters as octal numbers, so that no other shell finds anything
    of its own in them; csh ends a word at a new line, and a restricted shell starts no program by its path. Whatever
    the locale there, programs take bytes for UTF-8 and say what is wrong in English.
    """
    if not argv or any("\0" in word for word in argv):
        raise DeviceError("a command for the device must have words, none of them with a NUL")
    line = shlex.join(argv).encode("utf-8", "surrogateescape")
    plain = "".join(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in line)
    return f"""sh -c 'export LC_ALL=C.UTF-8; eval "$(printf %b "exec {plain}")"'"""


def run_command(channel: RemoteChannel, argv: Sequence[str], data: bytes, timeout_s: float, where: str) -> Completed:
    """Feed a program, read it to its end and return what it said; the channel is closed in any case."""
    output = bytearray()
    late = DeviceError(
        f"{argv[0]} on {where} did not end within {timeout_s:g} s", hint="look what keeps the device busy"
    )

    def feed() -> None:
        try:
            channel.send(data)
            channel.end_input()
        except DeviceError:
            pass  # it need not read all; a broken link shows in recv

    feeder = threading.Thread(target=feed, name="stdin", daemon=True)
    clock = _Clock(timeout_s)
    try:
        feeder.start()
        while chunk := channel.recv(65536, clock.left_s()):
            output += chunk
            if len(output) > OUTPUT_LIMIT_BYTES:
                raise DeviceError(f"{argv[0]} on {where} says more than {OUTPUT_LIMIT_BYTES >> 20} MiB")
        exit_code = channel.wait(clock.left_s())
        if exit_code is None:
            raise late
        return Completed(exit_code, bytes(output), channel.stderr_tail().encode())
    except TimeoutError as error:
        raise late from error
    finally:
        channel.close()


def put_file(
    start: Callable[[Sequence[str]], RemoteChannel],
    content: bytes | Path,
    remote_path: str,
    mode: int,
    progress: Progress | None,
    where: str,
) -> None:
    """Write a file on the device whole: see the module's docstring.

    Args:
        start: Opens a channel to a program on the device.
        content: The bytes, or the file that holds them.
        remote_path: Where to; `~/` is the home folder there.
        mode: Rights of the file.
        progress: Told how many bytes are there, of how many.
        where: The device, for messages.

    Raises:
        DeviceError: the link broke (the next call goes on from there), or the device cannot write the file.
    """
    with _open(content) as stream:
        digest, size = _digest(stream), stream.seek(0, io.SEEK_END)
        argv = ["sh", "-c", PUT_SCRIPT, "put", remote_path, f"{mode:o}", str(size), digest]
        channel = start(argv)
        try:
            begin = _agree(channel, stream, size, digest)
            channel.send(b"%d\n" % begin)
            stream.seek(begin)
            done = begin
            while chunk := stream.read(CHUNK_BYTES):
                channel.send(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, size)
            channel.end_input()
            answer = _read_line(channel)
            exit_code = channel.wait(PUT_ANSWER_LIMIT_S)
        except (TimeoutError, DeviceError) as error:
            raise _put_failure(channel, remote_path, where, error) from error
        finally:
            channel.close()
        if answer != "done" or exit_code:
            raise _put_failure(channel, remote_path, where, None)
        if progress is not None and begin == size:
            progress(size, size)


def _agree(channel: RemoteChannel, stream: io.BufferedIOBase, size: int, digest: str) -> int:
    """Return from which byte to go on: after what the device has, if that is really the beginning of the file."""
    said, line = None, None
    for _ in range(MAX_NOISE_LINES):
        line = _read_line(channel)
        said = None if line is None else re.search(rf"put-{digest} have ([0-9]{{1,20}}) (\S+)$", line)
        if said or line is None:
            break
    if not said:
        raise DeviceError(f"the device answers {clean_text(line or '', 60)!r} to an upload")
    have = int(said[1])
    if not 0 < have <= size:
        return 0
    return have if _digest(stream, have) == said[2] else 0


def _digest(stream: io.BufferedIOBase, size: int | None = None) -> str:
    """Return the SHA-256 of the first `size` bytes, by default of all."""
    stream.seek(0)
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES if size is None else min(CHUNK_BYTES, size)):
        digest.update(chunk)
        size = None if size is None else size - len(chunk)
    return digest.hexdigest()


def _read_line(channel: RemoteChannel) -> str | None:
    """Return the next line of the device, None where it has ended."""
    line = bytearray()
    clock = _Clock(PUT_ANSWER_LIMIT_S)
    while not line.endswith(b"\n") and len(line) < 4096:
        byte = channel.recv(1, clock.left_s())
        if not byte:
            break
        line += byte
    return clean_text(line.decode("utf-8", "replace")) if line else None


def _put_failure(channel: RemoteChannel, path: str, where: str, error: Exception | None) -> DeviceError:
    channel.wait(1.0)
    said = clean_text(channel.stderr_tail())
    if "No space left" in said or "quota" in said.lower():
        return DeviceError(f"cannot write {path} on {where}: the disk is full", hint="free some space on the device")
    if isinstance(error, DeviceError) and not said:
        return error
    reason = said or (str(error) if error else "it does not say why")
    hint = "run the command again: it goes on from there"
    if any(words in said for words in ("Permission denied", "Read-only file system", "cannot create directory")):
        hint = (
            "name a folder there that this account may write to: merino-edge devices add NAME --host HOST --root FOLDER"
        )
    return DeviceError(f"cannot write {path} on {where}: {reason}", hint=hint)


@contextmanager
def _open(content: bytes | Path) -> Iterator[io.BufferedIOBase]:
    if isinstance(content, bytes):
        yield io.BytesIO(content)
        return
    try:
        with open(content, "rb") as stream:
            yield stream
    except OSError as error:
        raise DeviceError(f"cannot read {content}: {error.strerror or error}") from error


class _Clock:
    """Time left until a limit."""

    def __init__(self, limit_s: float) -> None:
        self._end = time.monotonic() + limit_s

    def left_s(self) -> float:
        return max(0.0, self._end - time.monotonic())
