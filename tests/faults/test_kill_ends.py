"""kill -9 of the host's process, of the agent, and of sshd's session, at random bytes of a deployment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import board
import pytest
from campaign import Campaign
from sshd_server import MISSING, Client, Server, kill_if_there

from merino_edge.bundle import Bundle
from merino_edge.device.agent_link import AgentLink
from merino_edge.device.registry import DeviceEntry
from merino_edge.device.releases import install_bundle
from merino_edge.device.ssh import open_ssh
from merino_edge.device.transport import Channel, LocalTransport
from merino_edge.errors import MerinoEdgeError
from merino_edge.exporters.to_onnx import export
from merino_edge.testing import tiny_architecture, write_bundle

PROMISED = 820
CLIENTS, AGENTS, SESSIONS = 500, 290, 40
GONE_S = 12.0  # until an agent without its host has let go of the lock: 8 s of silence at most, and a loaded machine

pytestmark = pytest.mark.timeout(3600)


class Counting:
    """A channel that does something at one byte of what passes through it."""

    def __init__(self, channel: Channel, at: int, strike: Callable[[], None]) -> None:
        self._channel, self._left, self._strike = channel, at, strike
        self.passed = 0

    def send(self, data: bytes) -> None:
        if 0 < self._left <= len(data):
            self._channel.send(data[: self._left - 1])
        self._count(len(data))
        self._channel.send(data)

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        data = self._channel.recv(max_bytes, timeout_s)
        self._count(len(data))
        return data

    def _count(self, size: int) -> None:
        self.passed += size
        if 0 < self._left <= size:
            self._strike()
        self._left -= size

    def stderr_tail(self) -> str:
        return self._channel.stderr_tail()

    def close(self) -> None:
        self._channel.close()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    old, new = (tmp_path_factory.mktemp(name) for name in ("old", "new"))
    return write_bundle(old, export, tiny_architecture()), write_bundle(new, export, tiny_architecture(), seed=1)


def deploy(channel: Channel, bundle: Bundle) -> int:
    """Install a bundle over a channel; return the release."""
    link = AgentLink(channel, "the board")
    try:
        return install_bundle(link, bundle, board.RUNTIME).release
    finally:
        link.close()


def killed_client(root: Path, bundle: Bundle, at: int) -> bool:
    """Deploy in a process that kills itself at a byte; say whether it did."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            channel = LocalTransport().open(board.agent_argv(root))
            deploy(Counting(channel, at, lambda: os.kill(os.getpid(), signal.SIGKILL)), bundle)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killed_other(channel: Channel, bundle: Bundle, at: int, strike: Callable[[], None]) -> tuple[bool, bool, str]:
    """Deploy while something at the other end is killed; return (it was, it said that all was done, what is wrong)."""
    struck = False

    def once() -> None:
        nonlocal struck
        struck = True
        strike()

    try:
        deploy(Counting(channel, at, once), bundle)
        return struck, True, ""
    except MerinoEdgeError as error:
        return struck, False, "" if board.is_plain(error) else f"no plain word: {error.message!r} {error.hint!r}"
    except Exception as error:  # noqa: BLE001  whatever comes out is what the campaign looks for
        return struck, False, f"{type(error).__name__}: {error}"


def judge(campaign: Campaign, place: str, root: Path, bundle: Bundle, done: bool) -> None:
    """Check the store once the lock is free again, as somebody who tries again would find it."""
    deadline = time.monotonic() + GONE_S
    while wrong := board.what_is_wrong(root, 1, bundle, done):
        if "works on the device" not in wrong or time.monotonic() > deadline:
            campaign.fail(f"{place}: {wrong}")
            return
        time.sleep(0.2)


def test_killed_at_any_byte_a_deployment_leaves_the_old_or_the_new(
    scratch: Path, bundles: tuple[Bundle, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = Campaign("kill-ends", PROMISED)
    old, new = bundles
    ground = scratch / "ground"
    deploy(LocalTransport().open(board.agent_argv(ground)), old)
    first = scratch / "first"
    os.system(f"cp -a {ground} {first}")
    counting = Counting(LocalTransport().open(board.agent_argv(first)), 0, lambda: None)
    deploy(counting, new)
    plan = ["client"] * campaign.portion(CLIENTS + 20, 4) + ["agent"] * campaign.portion(AGENTS + 20, 3)
    plan += ["sshd"] * (0 if MISSING else campaign.portion(SESSIONS))
    client, server = Client(tmp_path / "client", monkeypatch), None
    if not MISSING:
        server = Server(scratch / "sshd")
        client.allow(server)
        client.know(server)
    for number, kind in enumerate(plan):
        root = scratch / f"{number}"
        os.system(f"cp -a {ground} {root}")
        at = campaign.random.randint(1, counting.passed)
        hit, done, wrong = cut(kind, root, new, at, server)
        if hit:
            campaign.hit(kind)
        if wrong:
            campaign.fail(f"{kind} killed at byte {at}: {wrong}")
        judge(campaign, f"{kind} killed at byte {at}", root, new, done)
        os.system(f"rm -rf {root}")
    if server is not None:
        server.stop()
    campaign.facts = {"bytes": counting.passed, "naive_broken_of": broken_by_naive_put(scratch, campaign)}
    campaign.finish()


def cut(kind: str, root: Path, new: Bundle, at: int, server: Server | None) -> tuple[bool, bool, str]:
    """Deploy and kill one end; see `killed_other`."""
    if kind == "client":
        return killed_client(root, new, at), False, ""
    if kind == "agent":
        channel = LocalTransport().open(board.agent_argv(root))
        return killed_other(channel, new, at, lambda: os.kill(channel.pid, signal.SIGKILL))
    assert server is not None
    transport = open_ssh(DeviceEntry("b", f"127.0.0.1:{server.port}", "local", None, "paramiko"))

    def kill_sessions() -> None:
        for session in server.sessions():
            kill_if_there(session)

    try:
        return killed_other(transport.open(board.agent_argv(root)), new, at, kill_sessions)
    finally:
        transport.close()


def broken_by_naive_put(scratch: Path, campaign: Campaign) -> list[int]:
    """Return (files left broken, kills) of a sender that writes over the file in use; it must fail."""
    target, content = scratch / "model", b"new" * 5000
    tried, broken = campaign.portion(20, least=4), 0
    for _ in range(tried):
        target.write_bytes(b"old" * 5000)
        at = campaign.random.randrange(1, len(content))
        child = os.fork()
        if child == 0:
            with open(target, "wb", buffering=0) as stream:
                stream.write(content[:at])
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        broken += target.read_bytes() not in (content, b"old" * 5000)
    assert broken, "the negative control was not caught"
    return [broken, tried]
