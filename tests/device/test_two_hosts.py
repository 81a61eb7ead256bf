"""A board of its own network: sshd in a second namespace, reached over a cable that can be pulled."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sshd_server import SSHD, Client, make_key, needs_sshd, public

from merino_edge.device.client import AgentDevice, open_device
from merino_edge.device.registry import DeviceEntry, Registry
from merino_edge.errors import DeviceError, MerinoEdgeError, UsageError
from merino_edge.flows.devices import add_device, remove_device

HERE, BOARD, PORT = "203.0.113.9", "203.0.113.10", 2222  # addresses that no network uses (RFC 5737)


def cannot() -> str | None:
    """Return why there is no second namespace here."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "a network namespace takes Linux, root and iproute2"
    name = f"merino-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "this kernel or container lets nobody make a network namespace"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None


WHY_NOT = cannot()
pytestmark = [needs_sshd, pytest.mark.alone, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


class Board:
    """A namespace with an sshd, at the other end of a virtual cable."""

    def __init__(self, folder: Path) -> None:
        self.name, self.cable = f"merino-{os.getpid()}", f"mre{os.getpid() % 100000}"
        self._sshd: subprocess.Popen[bytes] | None = None
        self.home = folder / "home"
        self.home.mkdir()
        self.key = make_key(folder / "host")
        self.authorized = folder / "authorized"
        self.authorized.touch()
        try:
            self._start(folder)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("address", "add", f"{HERE}/30", "dev", self.cable)
        ip("link", "set", self.cable, "up")
        for words in (("address", "add", f"{BOARD}/30", "dev", "eth0"), ("link", "set", "eth0", "up")):
            ip("-n", self.name, *words)
        config = folder / "sshd_config"
        lines = [
            f"ListenAddress {BOARD}",
            f"Port {PORT}",
            f"HostKey {self.key}",
            f"AuthorizedKeysFile {self.authorized}",
        ]
        lines += ["StrictModes no", "UsePAM no", "PidFile none", "PermitRootLogin yes", f"SetEnv HOME={self.home}"]
        config.write_text("\n".join(lines) + "\n")
        Path("/run/sshd").mkdir(exist_ok=True)
        command = ["ip", "netns", "exec", self.name, SSHD, "-D", "-e", "-f", str(config)]
        with open(folder / "log", "wb") as log:
            self._sshd = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        for _ in range(400):
            with contextlib.suppress(OSError), socket.create_connection((BOARD, PORT), timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError((folder / "log").read_text())

    def pull_the_cable(self) -> None:
        ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        ip("link", "set", self.cable, "up")

    def close(self) -> None:
        if self._sshd is not None:
            self._sshd.terminate()
            self._sshd.wait(10)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", self.cable)
        ip("netns", "del", self.name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    folder = tmp_path / "board"
    folder.mkdir()
    made = Board(folder)
    client = Client(tmp_path / "client", monkeypatch)
    made.authorized.write_text(public(client.key) + "\n")
    client.known_hosts.write_text(f"[{BOARD}]:{PORT} {public(made.key)}\n")
    yield made
    made.close()


def entry(board: Board, root: str | None = None) -> DeviceEntry:
    return DeviceEntry("board", f"{BOARD}:{PORT}", "local", root, "paramiko")


def agents(root: Path) -> list[str]:
    """Return the processes that run an agent of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{root}/agent-".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def test_a_board_in_its_own_network_is_added_used_and_left_as_it_was(board: Board, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere" / "root"
    document = add_device("board", f"{BOARD}:{PORT}", None, "paramiko", str(root))
    assert document["facts"]["device_id"]
    assert sorted(p.name for p in root.iterdir() if p.name.startswith("agent-"))
    assert root.stat().st_mode & 0o777 == 0o700
    left_behind = subprocess.Popen([sys.executable, "-c", "input()", f"{root}/agent-x"], stdin=subprocess.PIPE)
    removed = remove_device("board", purge=True)
    assert (removed["device_folder_removed"], removed["processes_ended"]) == (True, 1)
    left_behind.wait(5)
    assert not root.exists()
    assert agents(root) == []
    assert Registry().names() == ["local"]


@pytest.mark.skipif(os.uname().machine == "aarch64", reason="this machine could be a Pi by its processor")
def test_a_machine_of_another_processor_is_not_taken_for_the_board_that_was_named(board: Board, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"board is a {os.uname().machine} machine, and no Raspberry Pi 4"):
        add_device("board", f"{BOARD}:{PORT}", "pi4", "paramiko", str(tmp_path / "root"))
    assert Registry().names() == ["local"]


def test_a_purge_takes_no_folder_that_is_not_ours(board: Board, tmp_path: Path) -> None:
    root = tmp_path / "precious"
    root.mkdir()
    (root / "thesis.tex").write_text("x")
    Registry().add(entry(board, str(root)))
    with pytest.raises(DeviceError, match=r"holds what is not ours: thesis\.tex"):
        remove_device("board", purge=True)
    assert (root / "thesis.tex").exists()
    assert Registry().names() == ["local", "board"]


def test_a_purge_waits_for_nobody_and_ends_nobody_at_work(board: Board, tmp_path: Path) -> None:
    from merino_edge.agent.store import Store

    root = tmp_path / "root"
    Registry().add(entry(board, str(root)))
    with Store(root).lock("measure"), pytest.raises(DeviceError, match="somebody is at work there"):
        remove_device("board", purge=True)
    assert root.exists()


def test_a_pulled_cable_is_noticed_and_the_agent_ends_itself(board: Board, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with contextlib.suppress(MerinoEdgeError), open_device(entry(board, str(root))) as device:
        assert isinstance(device, AgentDevice)
        device.facts()
        board.pull_the_cable()
        started = time.monotonic()
        with pytest.raises(DeviceError):
            for _ in range(100):
                device.facts()
                time.sleep(0.5)
        assert time.monotonic() - started < 20  # 8 to 10 s on a quiet machine
    deadline = time.monotonic() + 25
    while agents(root):
        assert time.monotonic() < deadline, "the agent still runs"
        time.sleep(0.2)
    board.plug_in()
    with open_device(entry(board, str(root))) as device:
        assert device.facts()["device_id"]
