"""Talking to QEMU by its machine protocol: one JSON document a line, over a socket in the board's own folder."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SOCKET = "qmp.sock"


class QmpError(Exception):
    """QEMU refused a command, or is gone."""


class Qmp:
    """A conversation with one QEMU; a context manager.

    Args:
        folder: Where its socket lies. It is reached through a descriptor: a socket's path may not be long.
        timeout_s: Of every answer.
    """

    def __init__(self, folder: Path, timeout_s: float = 20.0) -> None:
        """Connect and leave the negotiation mode."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        place = os.open(folder, os.O_PATH)
        try:
            self._socket.connect(f"/proc/self/fd/{place}/{SOCKET}")
        except OSError as error:
            raise QmpError(f"nobody answers at {folder / SOCKET}: {error}") from error
        finally:
            os.close(place)
        self._lines = self._socket.makefile("rb")
        self._read()  # the greeting
        self.ask("qmp_capabilities")

    def __enter__(self) -> Self:
        """Return the conversation."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def ask(self, command: str, **arguments: object) -> Any:
        """Run a command and return its answer; events in between are passed over."""
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"QEMU has hung up: {error}") from error
        while True:
            answer = self._read()
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def _read(self) -> dict[str, Any]:
        try:
            line = self._lines.readline(1 << 20)
        except OSError as error:
            raise QmpError(f"QEMU does not answer: {error}") from error
        if not line:
            raise QmpError("QEMU has hung up")
        answer: dict[str, Any] = json.loads(line)
        return answer
