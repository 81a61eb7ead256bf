"""The measuring child, seen from the agent: started, asked, cancelled, and its death explained."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from typing import Callable

from merino_edge.agent import frames
from merino_edge.agent.errors import AgentError

CANCEL_GRACE_S = 5.0
_DEATHS = {
    signal.SIGILL: ("runtime", "the runtime uses an instruction that this CPU does not have", "try another version"),
    signal.SIGKILL: ("memory", "the measuring child was killed, most likely because memory ran out", ""),
    signal.SIGSEGV: ("runtime", "the runtime crashed (segmentation fault)", "try another version of it"),
    signal.SIGBUS: ("disk", "a model file became unreadable while it was in use (bus error)", "deploy again"),
    signal.SIGABRT: ("runtime", "the runtime gave up (abort)", "try another version of it"),
}


class Child:
    """One measuring child.

    Args:
        python: Its interpreter.
        path: Folder of unzipped wheels that it imports first, or None.
        lock: Descriptor of the held lock: it stays held as long as the child lives, whatever becomes of us.
        cache: Where a runtime keeps what it likes (onnxruntime: an id and a database), instead of in ~/.cache.
        beside: A further folder of unzipped wheels.
    """

    def __init__(
        self, python: str, path: str | None, lock: int, cache: str | None = None, beside: str | None = None
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        if cache is not None:
            environment["XDG_CACHE_HOME"] = cache
        argv = [python, sys.argv[0], "--worker"]
        for folder in (path, beside):
            argv += ["--path", folder] if folder else []
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=(lock,), env=environment
            )
        except OSError as error:
            raise AgentError("runtime", f"cannot start {python}: {error.strerror or error}") from error
        self._decoder = frames.Decoder()
        self._request = 0
        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def ask(
        self,
        request: dict[str, object],
        on_event: Callable[[dict[str, object]], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, object]:
        """Send one request and return its result.

        Args:
            request: `op` and what belongs to it.
            on_event: Called for each event on the way.
            cancelled: Asked several times a second; True stops the child.

        Raises:
            AgentError: the child's own, or the explanation of its death.
        """
        self._request += 1
        self._send(frames.encode_json(frames.REQUEST, self._request, request))
        deadline = None
        while True:
            if deadline is None and cancelled():
                self._send(frames.encode_json(frames.CANCEL, self._request, {}))
                deadline = time.monotonic() + CANCEL_GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                self.kill()
                raise AgentError("cancelled", "stopped as asked")
            readable, _, _ = select.select([self._stdout], [], [], 0.1)
            if not readable:
                continue
            data = os.read(self._stdout.fileno(), 1 << 16)
            if not data:
                raise self._death()
            try:
                received = self._decoder.feed(data)
            except frames.FrameError as error:
                self.kill()
                raise AgentError("failed", f"the measuring child spoke no frames: {error}") from error
            for frame in received:
                if frame.type == frames.EVENT:
                    on_event(frame.json())
                elif frame.type == frames.ERROR:
                    raise AgentError.from_json(frame.json())
                elif frame.type == frames.RESULT:
                    return frame.json()

    def _send(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._stdin.fileno(), data) :]
        except BrokenPipeError:
            raise self._death() from None

    def _death(self) -> AgentError:
        code = self._process.wait()
        if -code in _DEATHS:
            kind, message, hint = _DEATHS[signal.Signals(-code)]
            return AgentError(kind, message, hint, signal=-code)
        return AgentError("runtime", f"the measuring child ended early with status {code}", "see the agent's stderr")

    def kill(self) -> None:
        """End the child at once."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()
