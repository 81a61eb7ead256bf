"""kill -9 at every state-changing system call of the agent's store, by strace, as the kernel sees them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import scenarios
from campaign import Campaign

import merino_edge

PROMISED = 1500
TWICE = 680  # runs that are cut, and the next one cut as well
STATE_CHANGES = (
    "openat", "write", "pwrite64", "ftruncate", "fsync", "sync", "rename", "link", "symlink", "unlink", "unlinkat",
    "mkdir", "rmdir", "chmod", "flock",
)  # fmt: skip
_LINE = re.compile(r"^\d+\s+(\w+)\((.*)")

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="not installed: strace (make system-packages)"),
    pytest.mark.timeout(3600),
]


def command(action: str, root: Path, scenario: str, seed: int) -> list[str]:
    """Return the words that run a scenario in a fresh interpreter that imports next to nothing."""
    program = str(Path(scenarios.__file__))
    return [sys.executable, "-S", "-B", program, action, str(root), scenario, str(seed)]


def environment() -> dict[str, str]:
    """Let the interpreter find the package under test, in the order of its own imports."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(merino_edge.__file__).parent.parent)}


def trace(root: Path, scenario: str, seed: int, log: Path) -> list[tuple[str, int]]:
    """Run a scenario uncut; return (system call, its number among its kind) of each state change below the root."""
    words = ["strace", "-f", "-o", str(log), "-e", "trace=" + ",".join(STATE_CHANGES)]
    subprocess.run([*words, *command("run", root, scenario, seed)], env=environment(), check=True, timeout=60)
    places, counts, begun = [], dict.fromkeys(STATE_CHANGES, 0), False
    for line in log.read_text(errors="replace").splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        name, arguments = found.groups()
        counts[name] += 1
        begun = begun or str(root) in arguments
        if begun and not (name == "openat" and "O_CREAT" not in arguments):
            places.append((name, counts[name]))
    return places


def cut(root: Path, scenario: str, seed: int, place: tuple[str, int]) -> bool:
    """Run a scenario that is killed as it enters one system call; say whether it was."""
    name, number = place
    inject = ["-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}"]
    words = ["strace", "-f", "-o", "/dev/null", *inject, *command("run", root, scenario, seed)]
    done = subprocess.run(words, env=environment(), check=False, timeout=60, capture_output=True)
    return done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


class Ground:
    """Folders that scenarios start from, made once and copied for each cut."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self._number = folder, seed, 0
        self._made: dict[str, Path] = {}
        self._places: dict[str, list[tuple[str, int]]] = {}

    def fresh(self, scenario: str) -> Path:
        """Return a copy of what lies there before a scenario, hard links and all."""
        if scenario not in self._made:
            made = self.folder / f"made-{len(self._made)}"
            made.mkdir()
            scenarios.prepare(made / "root", scenario, self.seed)
            self._made[scenario] = made
        self._number += 1
        copy = self.folder / f"{self._number:05}"
        subprocess.run(["cp", "-a", str(self._made[scenario]), str(copy)], check=True)
        return copy / "root"

    def places(self, scenario: str) -> list[tuple[str, int]]:
        """Return where a scenario can be cut."""
        if scenario not in self._places:
            root = self.fresh(scenario)
            self._places[scenario] = trace(root, scenario, self.seed, self.folder / "log")
            shutil.rmtree(root.parent)
        return self._places[scenario]


def test_killed_at_any_system_call_what_is_deployed_is_whole(scratch: Path) -> None:
    campaign = Campaign("kills", PROMISED)
    draw, whole = campaign.random, campaign.share == 1
    grounds = [Ground(scratch / f"ground{n}", campaign.seed * 10 + n) for n in range(2 if whole else 1)]
    kinds = scenarios.SCENARIOS if whole else draw.sample(scenarios.SCENARIOS[:4], 2)
    plan: list[tuple[Ground, str, int]] = []
    for ground in grounds:
        ground.folder.mkdir()
        for scenario in kinds:
            plan += [(ground, scenario, n) for n in range(len(ground.places(scenario)))]
    at_every_place = len(plan)
    if not whole:
        plan = draw.sample(plan, campaign.portion(600))
    for ground, scenario, number in plan:
        root = ground.fresh(scenario)
        place = ground.places(scenario)[number]
        if cut(root, scenario, ground.seed, place):
            campaign.hit(scenario)
        if wrong := scenarios.check(root, scenarios.allowed(scenario), ground.seed):
            campaign.fail(f"{scenario} cut at {place}: {wrong}")
        shutil.rmtree(root.parent)
    # Twice: a cut anywhere, and the start that cleans up after it is cut as well.
    for _ in range(campaign.portion(TWICE)):
        ground, scenario = draw.choice(grounds), draw.choice([k for k in kinds if k not in ("measure", "runtime")])
        root = ground.fresh(scenario)
        first, second = draw.choice(ground.places(scenario)), draw.choice(ground.places("upgrade"))
        if cut(root, scenario, ground.seed, first):
            campaign.hit(f"{scenario}, the first of two")
        else:
            campaign.fail(f"{scenario} was not cut at {first}")
        if cut(root, "upgrade", ground.seed, second):
            campaign.hit(f"{scenario}, then the next install")
        allowed = scenarios.allowed(scenario) | {1, 2, 3, 4}
        if wrong := scenarios.check(root, allowed, ground.seed):
            campaign.fail(f"{scenario} cut at {first}, then an upgrade at {second}: {wrong}")
        shutil.rmtree(root.parent)
    campaign.facts = {"places": at_every_place, "naive_broken_of": broken_by_naive_put(scratch / "naive", campaign)}
    campaign.finish()


def broken_by_naive_put(folder: Path, campaign: Campaign) -> list[int]:
    """Return (models left broken, cuts) of an implementation that writes over the files in use; it must fail."""
    folder.mkdir()
    ground = Ground(folder, campaign.seed)
    places = ground.places("naive put")
    chosen = campaign.pick(list(range(len(places))), len(places), least=6)
    broken = 0
    for number in chosen:
        root = ground.fresh("naive put")
        cut(root, "naive put", ground.seed, places[number])
        broken += not scenarios.naive_is_whole(root, ground.seed)
        shutil.rmtree(root.parent)
    assert broken, "the negative control was not caught"
    return [broken, len(chosen)]
