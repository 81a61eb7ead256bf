"""The power of an emulated board goes during a deployment: QEMU is killed, and with it the guest's memory.

The guest is a real kernel with ext4 on a disk of its own. What it had not written is lost, and so is what it had
written to a new place of that disk and not flushed: QEMU keeps the disk's map in its own memory until the guest
flushes. What the guest had flushed is safe. A card may lose more than that: `test_power.py` loses all unflushed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import board
import emulator
import pytest
from campaign import Campaign
from image import TOOLS

from merino_edge.architecture import Architecture, Block
from merino_edge.bundle import MANIFEST, Bundle
from merino_edge.device.agent_link import AgentLink
from merino_edge.device.provision import agent_program
from merino_edge.device.registry import DeviceEntry
from merino_edge.device.releases import install_bundle
from merino_edge.device.ssh import open_ssh
from merino_edge.device.transport import Channel
from merino_edge.errors import MerinoEdgeError
from merino_edge.exporters.to_onnx import export
from merino_edge.testing import write_bundle

PROMISED = 22
NAIVE = 4
WHEN = ("while it is sent", "while it is installed", "while it is installed", "when it was done")
LEAST_SHARE = 0.1  # below that no board is booted
NAME, CPU = "power-cuts", "cortex-a72"
HOME = "/home/pi"
STORE, AGENT, QUICK = f"{HOME}/store", f"{HOME}/agent.pyz", f"{HOME}/quick_agent.py"
MODEL = Architecture((Block(256, 2, 2),), embedding_width=256, vocab_size=2048)  # 4 MB: a second or so on the way
MISSING = [tool for tool in (*TOOLS, emulator.QEMU, "qemu-img", "fdtput", "ssh") if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (make system-packages)"),
    pytest.mark.skipif(
        float(os.environ.get("FAULT_SHARE") or 0) < LEAST_SHARE, reason="boots emulated boards: make test-faults"
    ),
]


class Counted:
    """A channel that notes when it had sent so many bytes, and calls somebody then."""

    def __init__(self, channel: Channel, at: int, then: Callable[[], None]) -> None:
        self._channel, self._left, self._then = channel, at, then
        self.last_sent = 0.0

    def send(self, data: bytes) -> None:
        self._channel.send(data)
        if 0 < self._left <= len(data):
            self._then()
        self._left -= len(data)
        if len(data) > 1000:
            self.last_sent = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class Wall:
    """A board and the plug in the wall."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.boots = 0
        self.install_s = 0.0  # from the last byte of a deployment to its end

    def plug_in(self) -> None:
        """Boot from what is on the disk."""
        self.board = emulator.up(NAME, CPU, keep=True)
        self.boots += 1
        self._monkeypatch.setenv("MERINO_EDGE_SSH_CONFIG", str(self.board.ssh_config))

    def pull(self) -> None:
        """Take the power away."""
        emulator.kill(NAME)

    @contextlib.contextmanager
    def link(self, at: int = 0, then: Callable[[], None] = lambda: None) -> Iterator[AgentLink]:
        """Open a conversation with the agent there; after so many bytes to it, something happens."""
        transport = open_ssh(DeviceEntry(NAME, self.board.address, "pi4", None, "paramiko"))
        try:
            argv = ["env", f"PYTHONPATH={AGENT}", "python3", "-S", "-B", QUICK, "--root", STORE]
            channel = Counted(transport.open(argv), at, then)
            link = AgentLink(channel, "the board")
            try:
                yield link
                self.install_s = time.monotonic() - channel.last_sent
            finally:
                link.close()
        finally:
            transport.close()

    def bring_the_agent(self) -> None:
        """Put what runs there."""
        transport = open_ssh(DeviceEntry(NAME, self.board.address, "pi4", None, "paramiko"))
        try:
            transport.put(agent_program()[0], AGENT)
            transport.put(Path(board.__file__).with_name("quick_agent.py"), QUICK)
        finally:
            transport.close()

    def deploy(self, bundle: Bundle, at: int = 0, then: Callable[[], None] = lambda: None) -> int:
        """Deploy; return the release."""
        with self.link(at, then) as link:
            return install_bundle(link, bundle, board.RUNTIME).release


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wall]:
    """Boot a board with a fresh disk of its own; both are gone at the end."""
    emulator.kill(NAME)
    shutil.rmtree(emulator.run_folder(NAME), ignore_errors=True)
    made = Wall(monkeypatch)
    made.plug_in()
    try:
        made.bring_the_agent()
        yield made
    finally:
        emulator.kill(NAME)
        shutil.rmtree(emulator.run_folder(NAME), ignore_errors=True)


def cut(wall: Wall, bundle: Bundle, at: int, after_s: float) -> tuple[bool, str | None]:
    """Deploy and pull the plug at a byte and some time later, or as soon as all is done; say whether it was.

    The second is what was said without a next step, None where nothing was.
    """
    timer = threading.Timer(after_s, wall.pull)
    said, wrong = False, None
    try:
        wall.deploy(bundle, at, timer.start)
        said = True
    except MerinoEdgeError as error:
        wrong = None if board.is_plain(error) else f"no plain word: {error.message!r}, next: {error.hint!r}"
    finally:
        wall.pull()
        timer.cancel()
    return said, wrong


def what_is_wrong(wall: Wall, former: str, bundle: Bundle, said: bool) -> str | None:
    """Return what is broken on the board after it has booted again; the last step is a deployment unaided."""
    new = hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest()
    try:
        with wall.link() as link:
            found = link.ask("releases")
            now = {r["release"]: r["manifest_sha256"] for r in found["releases"]}.get(found["current"])
            if now not in ({new} if said else {former, new}):
                return f"release {found['current']} is current: {'it said that all was done' * said}, {found}"
            link.ask("verify", release=found["current"])
        release = wall.deploy(bundle)
        with wall.link() as link:
            link.ask("verify", release=release)
            link.ask("collect", keep=1)
            found = link.ask("releases")
        left = [r["release"] for r in found["releases"]]
        return None if (found["current"], left) == (release, [release]) else f"after the next deployment: {found}"
    except MerinoEdgeError as error:
        return f"after the boot: {error.message} ({error.hint})"


def test_board_that_loses_its_power_keeps_the_old_release_or_the_new(wall: Wall, tmp_path: Path) -> None:
    campaign = Campaign("board-power", PROMISED)
    first = write_bundle(tmp_path / "first", export, MODEL)
    wall.deploy(write_bundle(tmp_path / "warm", export, MODEL, seed=1000))  # the first of all takes longer
    wall.deploy(first)
    size, install_s = sum(f.bytes for f in first.manifest.files), wall.install_s
    former = hashlib.sha256((first.folder / MANIFEST).read_bytes()).hexdigest()
    news = 0
    for number in range(campaign.portion(PROMISED)):
        bundle = write_bundle(tmp_path / f"bundle{number}", export, MODEL, seed=number + 1)
        when = WHEN[number % len(WHEN)]
        at = {"while it is sent": campaign.random.randint(1, size), "while it is installed": size}.get(when, 0)
        after_s = campaign.random.uniform(0, install_s) if at == size else 0.0
        said, wrong = cut(wall, bundle, at, after_s)
        wall.plug_in()
        campaign.hit("when it was done" if said else when)
        place = f"cut {number}, {when}, at byte {at} of {size} and {after_s:.2f} of {install_s:.2f} s later"
        news += said
        for problem in (wrong, what_is_wrong(wall, former, bundle, said)):
            if problem:
                campaign.fail(f"{place}: {problem}")
        former = hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest()
        shutil.rmtree(bundle.folder)
    campaign.facts = {
        "emulated": f"{CPU}, QEMU {wall.board.qemu}",
        "said_done": news,
        "naive_broken_of": broken_without_flushing(wall, campaign),
        "boots": wall.boots,
    }
    campaign.finish()


def broken_without_flushing(wall: Wall, campaign: Campaign) -> list[int]:
    """Return (times lost or mixed, cuts) of a copy and a switched link, as by `scp` and `ln`; it must fail."""
    broken, tried = 0, campaign.portion(NAIVE, least=2)
    for number in range(tried):
        content = random.Random(f"{campaign.seed} {number}").randbytes(1 << 20)
        wall.board.ssh(f"mkdir -p {HOME}/naive/{number}")
        target = f"{HOME}/naive/{number}/model"
        transport = open_ssh(DeviceEntry(NAME, wall.board.address, "pi4", None, "paramiko"))
        try:
            script = f"cat > {target} && ln -sfn {number} {HOME}/naive/current"
            assert transport.run(["sh", "-c", script], input=content).exit_code == 0
        finally:
            transport.close()
        wall.pull()
        wall.plug_in()
        found = wall.board.ssh(f"sha256sum {HOME}/naive/current/model 2> /dev/null || echo nothing").split()[0]
        broken += found != hashlib.sha256(content).hexdigest()
    assert broken, "the negative control was not caught"
    return [broken, tried]
