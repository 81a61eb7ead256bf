"""A TCP proxy on loopback that does one thing wrong, at one byte of one direction."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from dataclasses import dataclass

KINDS = ("close", "reset", "stall", "half-open", "trickle", "flip", "garbage")
UP, DOWN = "up", "down"
TRICKLE_S = 1.0  # for a byte


@dataclass(frozen=True)
class Fault:
    """What goes wrong, in which direction, before which byte."""

    kind: str
    direction: str
    at: int
    seed: int = 0


class FaultProxy:
    """Passes connections on to a port; the next one may have a fault, the ones after it have none.

    Args:
        target: Port of the server.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.fault: Fault | None = None
        self.hit = threading.Event()
        self.passed = {UP: 0, DOWN: 0}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, fault: Fault | None) -> None:
        """Say what the next connection suffers; forget the ones before."""
        self._drop()
        self.fault, self.passed = fault, {UP: 0, DOWN: 0}
        self.hit.clear()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            fault, self.fault = self.fault, None
            with contextlib.suppress(OSError):
                there = socket.create_connection(("127.0.0.1", self._target))
                self._open += [here, there]
                held = threading.Event()  # set: nothing passes in either direction any more
                for source, sink, direction in ((here, there, UP), (there, here, DOWN)):
                    words = (source, sink, direction, fault, held, here, there)
                    threading.Thread(target=self._pass_on, args=words, daemon=True).start()

    def _pass_on(
        self,
        source: socket.socket,
        sink: socket.socket,
        direction: str,
        fault: Fault | None,
        held: threading.Event,
        here: socket.socket,
        there: socket.socket,
    ) -> None:
        mine = fault if fault is not None and fault.direction == direction else None
        with contextlib.suppress(OSError):
            if mine is not None and mine.at == 0:
                if not self._strike(mine, b"", sink, held, here, there):
                    return
                mine = None if mine.kind != "trickle" else mine
            while data := source.recv(65536):
                if held.is_set():
                    continue
                at = self.passed[direction]
                self.passed[direction] += len(data)
                if mine is not None and at + len(data) > mine.at >= at:
                    sink.sendall(data[: mine.at - at])
                    if not self._strike(mine, data[mine.at - at :], sink, held, here, there):
                        if held.is_set():
                            continue
                        return
                elif mine is not None and mine.kind == "trickle" and at > mine.at:
                    self._trickle(data, sink)
                else:
                    sink.sendall(data)
        if not held.is_set():
            _end(sink)

    def _strike(
        self,
        fault: Fault,
        rest: bytes,
        sink: socket.socket,
        held: threading.Event,
        here: socket.socket,
        there: socket.socket,
    ) -> bool:
        """Do what is wrong; return whether the rest passes as if nothing had been."""
        self.hit.set()
        draw = random.Random(fault.seed)
        if fault.kind == "close":
            _end(here)
            _end(there)
        elif fault.kind == "reset":
            for sock in (here, there):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RD)
                sock.close()
        elif fault.kind == "stall":
            held.set()
        elif fault.kind == "half-open":
            held.set()
            _end(there)
        elif fault.kind == "trickle":
            self._trickle(rest, sink)
            return True
        elif fault.kind == "flip":
            if rest:
                sink.sendall(bytes([rest[0] ^ 1 << draw.randrange(8)]) + rest[1:])
            return True
        elif fault.kind == "garbage":
            sink.sendall(draw.randbytes(draw.randrange(1, 200)) + rest)
            return True
        return False

    def _trickle(self, data: bytes, sink: socket.socket) -> None:
        for byte in data:
            if self._ended.wait(TRICKLE_S):
                return
            sink.sendall(bytes([byte]))

    def _drop(self) -> None:
        self._ended.set()
        for sock in self._open:
            _end(sock)
            sock.close()
        self._open = []
        self._ended = threading.Event()

    def close(self) -> None:
        """End everything."""
        self._drop()
        self._listener.close()


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
