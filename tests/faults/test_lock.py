"""Twenty contenders for one device's lock, killed at random: no overlap, and nobody waits for the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaign import Campaign

import merino_edge

CONTENDERS = 20
PROMISED = 200  # kills of a holder or of somebody who waits
STAMP_BYTES = 64
FREED_S = 10.0
STARTED_S = 120.0

pytestmark = pytest.mark.timeout(3600)

CONTENDER = """
import os, subprocess, sys, time
from merino_edge.agent.errors import AgentError
from merino_edge.agent.store import Store
root, log, naive = sys.argv[1], sys.argv[2], sys.argv[3] == "naive"
store = Store(__import__("pathlib").Path(root))
handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def stamp(what):
    os.write(handle, f"{what} {os.getpid()} {time.monotonic_ns()}".ljust(63).encode() + b"\\n")
while True:
    try:
        if naive:  # look whether somebody is there, then write one's own name: what a lock file without flock does
            if os.path.exists(root + "/naive"):
                time.sleep(0.001)
                continue
            time.sleep(0.001)
            open(root + "/naive", "w").close()
            stamp("in")
            time.sleep(0.003)
            stamp("out")
            os.unlink(root + "/naive")
            continue
        with store.lock("measure") as lock:
            child = subprocess.Popen(["sleep", "0.02"], pass_fds=(lock,)) if os.getpid() % 3 == 0 else None
            stamp("in")
            time.sleep(0.004)
            stamp("out")
            if child:
                child.wait()
        time.sleep(0.001)
    except FileNotFoundError:
        continue
    except AgentError as error:
        assert error.kind == "busy", error
        time.sleep(0.002)
"""


def start(root: Path, log: Path, how: str) -> subprocess.Popen[bytes]:
    """Start one contender."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(merino_edge.__file__).parent.parent)}
    words = [sys.executable, "-S", "-c", CONTENDER, str(root), str(log), how]
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)


def overlaps(log: str) -> tuple[int, int, float]:
    """Return (times that two were inside at once, times that somebody came in, longest gap between two of them in s).

    Who was killed inside has no `out`; the kernel frees the lock no earlier than its death.
    """
    inside: dict[int, int] = {}
    wrong = entered = 0
    last, gap = None, 0.0
    rows = [line.split() for line in log.splitlines()]
    dead = {int(pid) for what, pid, _ in rows if what == "killed"}
    for what, pid, at in sorted(rows, key=lambda row: int(row[2])):
        if what == "in":
            wrong += any(other not in dead for other in inside)
            inside = {int(pid): int(at)}
            entered += 1
            gap = max(gap, (int(at) - (last or int(at))) / 1e9)
            last = int(at)
        elif what == "out":
            inside.pop(int(pid), None)
    return wrong, entered, gap


def contend(scratch: Path, how: str, kills: int, campaign: Campaign) -> tuple[int, int, float]:
    """Let contenders work and die in a folder of their own; return what `overlaps` does."""
    root, log = scratch / how, scratch / f"{how}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    contenders = [start(root, log, how) for _ in range(CONTENDERS)]
    try:
        deadline = time.monotonic() + STARTED_S
        while log.stat().st_size < STAMP_BYTES * CONTENDERS:
            assert time.monotonic() < deadline, "nobody gets the lock"
            time.sleep(0.01)
        for _ in range(kills):
            time.sleep(campaign.random.uniform(0.0, 0.05))
            number = campaign.random.randrange(CONTENDERS)
            victim = contenders[number]
            assert victim.poll() is None, victim.stderr and victim.stderr.read()
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            with open(log, "a") as stream:
                stream.write(f"killed {victim.pid} {time.monotonic_ns()}".ljust(63) + "\n")
            if how == "flock":
                campaign.hit("killed")
            contenders[number] = start(root, log, how)
        before = log.stat().st_size
        deadline = time.monotonic() + FREED_S
        while log.stat().st_size < before + 4 * STAMP_BYTES and how == "flock":
            assert time.monotonic() < deadline, "nobody gets the lock any more"
            time.sleep(0.01)
        said = log.read_text()  # before the end kills whoever is inside
    finally:
        for contender in contenders:
            contender.kill()
            contender.wait()
    return overlaps(said[: said.rfind("\n")])


def test_twenty_contenders_never_overlap(scratch: Path) -> None:
    campaign = Campaign("lock", PROMISED)
    wrong, entered, gap = contend(scratch, "flock", campaign.portion(PROMISED), campaign)
    if wrong:
        campaign.fail(f"{wrong} overlaps in {entered}")
    if gap > FREED_S:
        campaign.fail(f"for {gap:.1f} s nobody held the lock")
    naive = tried = 0
    for attempt in range(6):  # each in a folder of its own: whoever is killed at the end leaves its file behind
        naive, tried, _ = contend(scratch / f"naive-{attempt}", "naive", 0, campaign)
        if naive:
            break
    assert naive, "the negative control was not caught"
    campaign.facts = {
        "contenders": CONTENDERS, "held": entered, "overlaps": wrong, "longest_gap_s": round(gap, 2),
        "naive_broken_of": [naive, tried],
    }  # fmt: skip
    campaign.finish()
