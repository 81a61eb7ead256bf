"""The power of an emulated board goes during a deployment: QEMU is killed, and with it the guest's memory.

The guest is a real kernel with ext4 on a disk of its own. What it had not written is lost, and so is what it had
written to a new place of that disk and not flushed: QEMU keeps the disk's map in its own memory until the guest
flushes. What the guest had flushed is safe. A card may lose more than that: `test_power.py` loses all unflushed.

The agent there tells when a stage of its work begins (`telling_agent.py`), and the plug is pulled at a random time
within that stage. What is counted is the last stage that the board told of before it died.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import board
import emulator
import pytest
from campaign import Campaign
from image import TOOLS
from telling_agent import STAGES, stage_mark

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

SENT, DONE = "sent", "done"
WHEN = (SENT, *STAGES, DONE)
LEAST = 3  # cuts in each stage
PROMISED = 22
NAIVE = 4
LEAST_SHARE = 0.1  # below that no board is booted
NAME, CPU = "power-cuts", "cortex-a72"
HOME = "/home/pi"
STORE, AGENT = f"{HOME}/store", f"{HOME}/agent.pyz"
PROGRAM = "telling_agent.py"
MODEL = Architecture((Block(256, 2, 2),), embedding_width=256, vocab_size=2048)  # 4 MB: a second or so on the way
MISSING = [tool for tool in (*TOOLS, emulator.QEMU, "qemu-img", "fdtput", "ssh") if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (make system-packages)"),
    pytest.mark.skipif(
        float(os.environ.get("FAULT_SHARE") or 0) < LEAST_SHARE, reason="boots emulated boards: make test-faults"
    ),
]


@dataclass(frozen=True)
class Plan:
    """When the plug is pulled: so long after a byte was sent, or after a stage was told."""

    stage: str
    at: int = 0
    after_s: float = 0.0


class Watched:
    """A channel that pulls the plug as planned, and notes when each stage was told."""

    def __init__(self, channel: Channel, plan: Plan, pull: Callable[[], None]) -> None:
        self._channel, self._plan, self._left = channel, plan, plan.at
        self._timer = threading.Timer(plan.after_s, pull)
        self._heard = b""
        self.began: dict[str, float] = {}

    def send(self, data: bytes) -> None:
        self._channel.send(data)
        if 0 < self._left <= len(data):
            self._timer.start()
        self._left -= len(data)

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        data = self._channel.recv(max_bytes, timeout_s)
        self._heard = (self._heard + data)[-4096:]
        for stage in STAGES:
            if stage not in self.began and stage_mark(stage) in self._heard:
                self.began[stage] = time.monotonic()
                if stage == self._plan.stage:
                    self._timer.start()
        return data

    def end(self) -> None:
        """Pull nothing any more."""
        self._timer.cancel()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


@dataclass
class Deployment:
    """What became of one.

    Attributes:
        installed: The board said that the release is in use.
        done: And that it has collected what no release needs.
        began: When each stage was told.
        release: Its number.
        stage_s: How long each stage took, where it was not cut.
    """

    installed: bool = False
    done: bool = False
    release: int = 0
    began: dict[str, float] = field(default_factory=dict)
    stage_s: dict[str, float] = field(default_factory=dict)

    @property
    def last(self) -> str:
        """The last stage that the board told of."""
        return DONE if self.done else next((stage for stage in reversed(STAGES) if stage in self.began), SENT)


class Wall:
    """A board and the plug in the wall."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.boots = 0

    def plug_in(self) -> None:
        """Boot from what is on the disk."""
        self.board = emulator.up(NAME, CPU, keep=True)
        self.boots += 1
        self._monkeypatch.setenv("MERINO_EDGE_SSH_CONFIG", str(self.board.ssh_config))

    def pull(self) -> None:
        """Take the power away."""
        emulator.kill(NAME)

    @contextlib.contextmanager
    def link(self, plan: Plan = Plan(DONE), into: Deployment | None = None) -> Iterator[AgentLink]:
        """Open a conversation with the agent there, the plug to be pulled as planned."""
        transport = open_ssh(DeviceEntry(NAME, self.board.address, "pi4", None, "paramiko"))
        try:
            argv = ["env", f"PYTHONPATH={AGENT}", "python3", "-S", "-B", f"{HOME}/{PROGRAM}", "--root", STORE]
            channel = Watched(transport.open(argv), plan, self.pull)
            if into is not None:
                into.began = channel.began
            link = AgentLink(channel, "the board")
            try:
                yield link
            finally:
                channel.end()
                link.close()
        finally:
            transport.close()

    def bring_the_agent(self) -> None:
        """Put what runs there."""
        transport = open_ssh(DeviceEntry(NAME, self.board.address, "pi4", None, "paramiko"))
        try:
            transport.put(agent_program()[0], AGENT)
            transport.put(Path(__file__).with_name(PROGRAM), f"{HOME}/{PROGRAM}")
        finally:
            transport.close()

    def deploy(self, bundle: Bundle, plan: Plan = Plan(DONE), into: Deployment | None = None) -> Deployment:
        """Deploy and collect; what was reached stands in `into` even where it is cut."""
        result = Deployment() if into is None else into
        with self.link(plan, result) as link:
            result.release = install_bundle(link, bundle, board.RUNTIME).release
            result.installed = True
            link.ask("collect", keep=2)
            result.done = True
            ends = [*(result.began[stage] for stage in STAGES[1:]), time.monotonic()]
            result.stage_s = {s: end - result.began[s] for s, end in zip(STAGES, ends, strict=True)}
        return result


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


def cut(wall: Wall, bundle: Bundle, plan: Plan) -> tuple[Deployment, str | None]:
    """Deploy and pull the plug as planned, at the latest as soon as all is done.

    The second is what was said without a next step, None where nothing was.
    """
    result, wrong = Deployment(), None
    try:
        wall.deploy(bundle, plan, result)
    except MerinoEdgeError as error:
        wrong = None if board.is_plain(error) else f"no plain word: {error.message!r}, next: {error.hint!r}"
    finally:
        wall.pull()
    return result, wrong


def what_is_wrong(wall: Wall, former: str, bundle: Bundle, said: bool) -> str | None:
    """Return what is broken on the board after it has booted again; the last step is a deployment unaided."""
    new = digest_of(bundle)
    try:
        with wall.link() as link:
            found = link.ask("releases")
            now = {r["release"]: r["manifest_sha256"] for r in found["releases"]}.get(found["current"])
            if now not in ({new} if said else {former, new}):
                return f"release {found['current']} is current: {'it said that all was done' * said}, {found}"
            link.ask("verify", release=found["current"])
        release = wall.deploy(bundle).release
        with wall.link() as link:
            link.ask("verify", release=release)
            link.ask("collect", keep=1)
            found = link.ask("releases")
        left = [r["release"] for r in found["releases"]]
        return None if (found["current"], left) == (release, [release]) else f"after the next deployment: {found}"
    except MerinoEdgeError as error:
        return f"after the boot: {error.message} ({error.hint})"


def digest_of(bundle: Bundle) -> str:
    """Return the digest by which a release is told from another."""
    return hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest()


def plan_of(stage: str, campaign: Campaign, size: int, stage_s: dict[str, float]) -> Plan:
    """Draw when the plug is pulled."""
    at = campaign.random.randint(1, size) if stage == SENT else 0
    return Plan(stage, at, campaign.random.uniform(0, stage_s.get(stage, 0.0)))


def test_board_that_loses_its_power_keeps_the_old_release_or_the_new(wall: Wall, tmp_path: Path) -> None:
    campaign = Campaign("board-power", PROMISED)
    former = write_bundle(tmp_path / "first", export, MODEL)
    wall.deploy(write_bundle(tmp_path / "warm", export, MODEL, seed=1000))  # the first of all takes longer
    stage_s = wall.deploy(former).stage_s
    size, least = sum(f.bytes for f in former.manifest.files), campaign.portion(LEAST)
    news, number, most = 0, 0, 2 * max(campaign.portion(PROMISED), least * len(WHEN))
    while number < most and (lacking := lacks(campaign, least)):
        stage = lacking[number % len(lacking)]
        plan = plan_of(stage, campaign, size, stage_s)
        bundle = write_bundle(tmp_path / f"bundle{number}", export, MODEL, seed=number + 1)
        result, wrong = cut(wall, bundle, plan)
        wall.plug_in()
        campaign.hit(result.last)
        news += result.installed
        for problem in (wrong, what_is_wrong(wall, digest_of(former), bundle, result.installed)):
            if problem:
                campaign.fail(f"cut {number} at {result.last!r}, {plan}: {problem}")
        shutil.rmtree(former.folder)
        former, number = bundle, number + 1
    campaign.facts = {
        "emulated": f"{CPU}, QEMU {wall.board.qemu}",
        "stage_s": {stage: round(seconds, 3) for stage, seconds in stage_s.items()},
        "said_installed": news,
        "naive_broken_of": broken_without_flushing(wall, campaign),
        "boots": wall.boots,
    }
    if lacking := lacks(campaign, least):
        campaign.fail(f"fewer than {least} cuts each in: {', '.join(lacking)}")
    campaign.finish()


def lacks(campaign: Campaign, least: int) -> list[str]:
    """Return the stages that too few cuts have hit; all while there are too few at all."""
    lacking = [stage for stage in WHEN if campaign.hits[stage] < least]
    return lacking or (list(WHEN) if sum(campaign.hits.values()) < campaign.portion(PROMISED) else [])


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
