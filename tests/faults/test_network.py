"""A network that breaks at any byte of a session: no hang, no corrupt file, and what arrived is not sent again.

A third of the sessions each go over paramiko, over the system's `ssh`, and as bare frames, where no SSH guards them.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import board
import pytest
from campaign import Campaign
from fault_proxy import DOWN, KINDS, UP, Fault, FaultProxy
from sshd_server import Client, Server, needs_sshd

from merino_edge.device.agent_link import AgentLink
from merino_edge.device.registry import DeviceEntry
from merino_edge.device.releases import push_files
from merino_edge.device.ssh import open_ssh
from merino_edge.device.transport import Transport
from merino_edge.errors import DeviceError, MerinoEdgeError

PROMISED = 500
WAYS = ("paramiko", "openssh", "frames")
WORKERS = 8
FILE_BYTES = 3 << 20
SLACK_BYTES = 1 << 20
HANDSHAKE_BYTES = 6000  # of the beginning of a session, where half of the faults fall
LIMIT_S = 75.0  # connecting 10, handshake 10, login 20, the agent's hello 20; and a loaded machine
WHOLE_SESSION = {UP: FILE_BYTES + 40_000, DOWN: 8_000}

pytestmark = [needs_sshd, pytest.mark.alone, pytest.mark.timeout(3600)]


class SocketChannel:
    """An agent's stdin and stdout at the other end of a socket."""

    def __init__(self, port: int) -> None:
        try:
            self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        except OSError as error:
            raise DeviceError(f"no connection: {error}", hint="try again") from error

    def send(self, data: bytes) -> None:
        self._socket.settimeout(30)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise DeviceError(f"the link broke: {error}", hint="run it again") from error

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(max_bytes)
        except TimeoutError:
            raise
        except OSError as error:
            raise DeviceError(f"the link broke: {error}", hint="run it again") from error

    def stderr_tail(self) -> str:
        return ""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class AgentServer:
    """Starts an agent for every connection, as sshd would."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._agents: list[subprocess.Popen[bytes]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                argv = board.agent_argv(self._root)
                self._agents.append(subprocess.Popen(argv, stdin=sock, stdout=sock, stderr=subprocess.DEVNULL))

    def close(self) -> None:
        self._listener.close()
        for agent in self._agents:
            agent.kill()
            agent.wait()


class Way:
    """One worker's way to its own store, through its own proxy."""

    def __init__(self, folder: Path, server: Server, client: Client) -> None:
        self.root = folder / "root"
        self._frames = AgentServer(self.root)
        self.proxies = {name: FaultProxy(self._frames.port if name == "frames" else server.port) for name in WAYS}
        for name in ("paramiko", "openssh"):
            client.know(server, f"[127.0.0.1]:{self.proxies[name].port}")
        self.digest = ""

    @contextlib.contextmanager
    def link(self, name: str) -> Iterator[AgentLink]:
        """Open a conversation with the agent."""
        port = self.proxies[name].port
        if name == "frames":
            link = AgentLink(SocketChannel(port), "the board")
            try:
                yield link
            finally:
                link.close()
            return
        transport: Transport = open_ssh(DeviceEntry("b", f"127.0.0.1:{port}", "local", None, name))  # type: ignore[arg-type]
        try:
            link = AgentLink(transport.open(board.agent_argv(self.root)), "the board")
            try:
                yield link
            finally:
                link.close()
        finally:
            transport.close()

    def held(self) -> int:
        """Return how many bytes of the file have arrived."""
        path = self.root / "objects" / self.digest
        for place in (path, path.with_name(path.name + ".part")):
            if place.is_file():
                return place.stat().st_size
        return 0

    def close(self) -> None:
        """End everything."""
        for proxy in self.proxies.values():
            proxy.close()
        self._frames.close()


class Session:
    """One session with one fault, and what came of it."""

    def __init__(self, number: int, name: str, fault: Fault) -> None:
        self.number, self.name, self.fault = number, name, fault
        self.hit = False
        self.seconds = self.resent = 0.0
        self.wrong: list[str] = []

    def run(self, way: Way, folder: Path) -> None:
        """Send a file while the network breaks, then once more while it does not."""
        path = folder / f"file{self.number}"
        path.write_bytes(random.Random(self.number).randbytes(FILE_BYTES))
        way.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        proxy = way.proxies[self.name]
        proxy.arm(self.fault)
        started = time.monotonic()
        try:
            with way.link(self.name) as link:
                push_files(link, {way.digest: path})
        except MerinoEdgeError as error:
            if not board.is_plain(error):
                self.wrong.append(f"no plain word: {error.message!r}, next: {error.hint!r}")
        except Exception as error:  # noqa: BLE001  whatever comes out is what the campaign looks for
            self.wrong.append(f"{type(error).__name__}: {error}")
        self.seconds = time.monotonic() - started
        self.hit = proxy.hit.is_set()
        if self.seconds > LIMIT_S:
            self.wrong.append(f"it took {self.seconds:.0f} s")
        proxy.arm(None)
        self._again(way, path)
        path.unlink()

    def _again(self, way: Way, path: Path) -> None:
        before = way.held()
        try:
            with way.link(self.name) as link:
                sent = push_files(link, {way.digest: path}).bytes_sent
        except MerinoEdgeError as error:
            self.wrong.append(f"the next session failed: {error.message}")
            return
        self.resent = sent - (FILE_BYTES - before)
        if self.resent > SLACK_BYTES:
            self.wrong.append(f"{before} bytes had arrived, and {sent} were sent again")
        if damaged := board.damaged_objects(way.root):
            self.wrong.append(f"damaged: {damaged}")
        elif way.held() != FILE_BYTES:
            self.wrong.append("the file is not there")


def plan(campaign: Campaign, count: int) -> list[Session]:
    """Draw faults over all ways, kinds, directions and places."""
    sessions = []
    for number in range(count):
        kind, name = KINDS[number % len(KINDS)], WAYS[number // len(KINDS) % len(WAYS)]
        direction = campaign.random.choice((UP, DOWN))
        end = WHOLE_SESSION[direction] if campaign.random.random() < 0.5 else HANDSHAKE_BYTES
        if name == "frames":
            end = min(end, FILE_BYTES if direction == UP else 300)
        at = 0 if kind == "garbage" and campaign.random.random() < 0.5 else campaign.random.randrange(end)
        if kind == "garbage" and at == 0:
            direction = DOWN  # before the banner
        sessions.append(Session(number, name, Fault(kind, direction, at, campaign.random.randrange(1 << 30))))
    return sessions


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    return Client(tmp_path / "client", monkeypatch)


def test_a_network_that_breaks_anywhere_costs_time_and_nothing_else(scratch: Path, client: Client) -> None:
    campaign = Campaign("network", PROMISED)
    server = Server(scratch / "sshd")
    client.allow(server)
    sessions = plan(campaign, campaign.portion(PROMISED + 160, least=len(KINDS) * len(WAYS)))
    todo = list(reversed(sessions))
    lock = threading.Lock()

    def work(number: int) -> None:
        folder = scratch / f"worker{number}"
        folder.mkdir()
        with lock:
            way = Way(folder, server, client)
        try:
            while True:
                with lock:
                    if not todo:
                        return
                    session = todo.pop()
                session.run(way, folder)
                for path in (way.root / "objects").iterdir():
                    path.unlink()
        finally:
            way.close()

    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            for done in [pool.submit(work, number) for number in range(min(WORKERS, len(sessions)))]:
                done.result()
    finally:
        server.stop()
    for session in sessions:
        if session.hit:
            campaign.hit(f"{session.name}, {session.fault.kind}")
        for wrong in session.wrong:
            campaign.fail(f"{session.name}, {session.fault}: {wrong}")
    campaign.facts = {
        "longest_s": {k: round(max((s.seconds for s in sessions if s.fault.kind == k), default=0), 1) for k in KINDS},
        "most_resent_bytes": int(max(s.resent for s in sessions)),
        "naive_broken_of": broken_by_naive_put(scratch, campaign),
    }
    campaign.finish()


def broken_by_naive_put(scratch: Path, campaign: Campaign) -> list[int]:
    """Return (files broken and taken for whole, cuts) of bytes sent bare and written as they come; it must fail."""
    tried, broken, content = campaign.portion(20, least=4), 0, b"model" * 10_000
    target = scratch / "naive"
    for _ in range(tried):
        listener = socket.create_server(("127.0.0.1", 0))
        proxy = FaultProxy(listener.getsockname()[1])
        kind = campaign.random.choice(("flip", "close"))
        proxy.arm(Fault(kind, UP, campaign.random.randrange(len(content)), campaign.random.randrange(99)))
        sender = socket.create_connection(("127.0.0.1", proxy.port))
        taker, _ = listener.accept()
        with contextlib.suppress(OSError):
            sender.sendall(content)
            sender.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(OSError):
            while data := taker.recv(65536):
                received += data
        target.write_bytes(received)
        broken += target.read_bytes() != content
        for end in (sender, taker, listener):
            end.close()
        proxy.close()
    assert broken, "the negative control was not caught"
    return [broken, tried]
