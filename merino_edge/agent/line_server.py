"""The deployed model on a UNIX socket of its user alone: one JSON object a line, no network; and its systemd unit.

    -> {"prompt": "Once upon a time", "max_tokens": 32, "seed": 1}
    <- {"text": " there"}   any number of them, as the text comes
    <- {"done": true, "tokens": 32, "seconds": 1.6, "tokens_per_s": 20.1, "ended": "length"}
    <- {"error": "...", "kind": "request"}   instead, where it went wrong

A connection may ask again and again; texts are made one at a time. Once `current` leads to another
release, the server starts anew from that one.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import stat
import sys
import threading
from typing import Any, Callable, Sequence

from merino_edge.agent.errors import AgentError
from merino_edge.agent.standalone import Model

MAX_LINE_BYTES = 1 << 18
MAX_CONNECTIONS = 8
IDLE_S = 300.0  # after which a silent connection is closed
SEND_S = 10.0  # that a client may leave its answer unread before the next one's turn
LOOK_S = 1.0  # how often it is looked whether `current` leads elsewhere

UNIT = """\
[Unit]
Description=Language model of merino-edge on a UNIX socket

[Service]
ExecStart={python} {run} --socket %t/merino-edge.sock
Restart=on-failure
RestartSec=5
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX

[Install]
WantedBy=default.target
"""
STEPS = """
To start it at boot, on this machine:
  mkdir -p ~/.config/systemd/user
  {python} {run} --systemd > ~/.config/systemd/user/merino-edge.service
  systemctl --user daemon-reload && systemctl --user enable --now merino-edge
  loginctl enable-linger        # else it starts when you log in, and ends when you log out
Then: {python} {run} --socket $XDG_RUNTIME_DIR/merino-edge.sock "Once upon a time"
"""


def unit_text(python: str, run: str) -> str:
    """Return the unit that serves from boot on.

    Args:
        python: The interpreter.
        run: `run.py`, by way of `current` for a unit that follows deployments.
    """
    return UNIT.format(python=_unit_word(python), run=_unit_word(run))


def unit_steps(python: str, run: str) -> str:
    """Return what a person types to use the unit."""
    return STEPS.format(python=_shell_word(python), run=_shell_word(run))


def _unit_word(word: str) -> str:
    """Quote a word for systemd: see systemd.service(5), "Command lines"."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w/.:@+,=%-]+", escaped) else f'"{escaped}"'


def _shell_word(word: str) -> str:
    return word if re.fullmatch(r"[\w/.:@+,=-]+", word) else "'" + word.replace("'", "'\\''") + "'"


def _listen(path: str) -> socket.socket:
    """Open the socket, mode 0600; one that nobody listens on any more is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise AgentError("request", f"{path} is there and no socket", "name another with --socket")
            try:
                listener.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise AgentError("busy", f"somebody serves on {path} already", "end it, or name another with --socket")
            listener.close()
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        text = f"cannot listen on {path}: {error.strerror or error}"
        raise AgentError("request", text, "name another with --socket") from None
    except AgentError:
        listener.close()
        raise
    return listener


class Server:
    """Reads connections in threads of their own, and makes one text at a time in the thread that calls `answer_next`.

    That thread starts the measuring child, which Linux ends together with the thread.

    Args:
        model: What answers.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._asked: queue.Queue[tuple[socket.socket, bytes, threading.Event]] = queue.Queue()
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def accept_all(self, listener: socket.socket) -> None:
        """Take connections until the listener is closed; beyond so many, say so."""
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(IDLE_S)
            if self._places.acquire(blocking=False):
                threading.Thread(target=self._read, args=(connection,), daemon=True).start()
                continue
            with contextlib.closing(connection), contextlib.suppress(OSError):
                _send(connection, {"error": f"{MAX_CONNECTIONS} connections are open already", "kind": "busy"})

    def answer_next(self, wait_s: float) -> bool:
        """Answer one request, if one comes soon enough; say whether one did."""
        try:
            connection, line, done = self._asked.get(timeout=wait_s)
        except queue.Empty:
            return False
        try:
            self._answer(connection, line)
        except OSError:  # the client has gone, or does not read: no second half of a line will follow
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        finally:
            done.set()
        return True

    def _read(self, connection: socket.socket) -> None:
        """Read a connection's requests, each when the one before was answered."""
        try:
            with contextlib.closing(connection), contextlib.suppress(OSError), connection.makefile("rb") as lines:
                while True:
                    line = lines.readline(MAX_LINE_BYTES)
                    if not line:
                        return
                    if not line.endswith(b"\n") and len(line) >= MAX_LINE_BYTES:
                        _send(connection, {"error": f"a line is at most {MAX_LINE_BYTES} bytes", "kind": "request"})
                        return
                    done = threading.Event()
                    with connection.dup() as answering:  # the same socket, with a time limit of its own
                        answering.settimeout(SEND_S)
                        self._asked.put((answering, line, done))
                        done.wait()
        finally:
            self._places.release()

    def _answer(self, connection: socket.socket, line: bytes) -> None:
        try:
            asked = _parse(line)
            done = self.model.generate(asked.pop("prompt"), asked, lambda text: _send(connection, {"text": text}))
        except AgentError as error:
            _send(connection, {"error": error.message, "kind": error.kind})
        else:
            _send(connection, {"done": True, **done})


def _parse(line: bytes) -> dict[str, Any]:
    """Return a request with its prompt."""
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AgentError("request", f"a line must be one JSON object: {error}") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("prompt"), str):
        raise AgentError("request", 'a line must be one JSON object with a text "prompt"')
    return asked


def _send(connection: socket.socket, value: dict[str, Any]) -> None:
    connection.sendall(json.dumps(value).encode("utf-8") + b"\n")


def serve(model: Model, path: str, invoked: str, words: Sequence[str]) -> int:
    """Serve until told to stop; start anew where `current` leads to another release.

    Args:
        model: What answers.
        path: Of the socket.
        invoked: The `run.py` that was called.
        words: Its command line.
    """
    listener = _listen(path)
    server = Server(model)
    own = os.path.realpath(invoked)

    def stop(number: int, frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=server.accept_all, args=(listener,), daemon=True).start()
    sys.stderr.write(f"serving release {model.folder.name} on {path}\n")
    try:
        while not _has_moved(invoked, own):
            server.answer_next(LOOK_S)
    finally:
        listener.close()
        model.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    sys.stderr.write("another release was deployed: starting anew\n")
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, invoked, *words])


def _has_moved(invoked: str, own: str) -> bool:
    """Say whether `current` leads to another release than ours, which has a `run.py` too."""
    now = os.path.realpath(invoked)
    return now != own and os.path.isfile(now)


def ask(path: str, request: dict[str, Any], emit: Callable[[str], None]) -> dict[str, Any]:
    """Ask who serves on a socket for one text; return what it said at the end."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            hint = f"serve with: {sys.executable} run.py --socket {path}"
            raise AgentError("missing", f"nobody serves on {path}: {error.strerror or error}", hint) from None
        _send(connection, request)
        with connection.makefile("rb") as lines:
            for line in lines:
                answer = dict(json.loads(line))
                if "error" in answer:
                    raise AgentError(str(answer.get("kind")), str(answer["error"]))
                if answer.get("done"):
                    return answer
                emit(str(answer["text"]))
    raise AgentError("failed", f"who serves on {path} has gone", "ask again")
