"""`doctor`: what is missing on this host and on the devices, and the command that mends each.

Every finding is `ok`, `note` (works, and could be better or is optional) or `problem` (something will
fail); notes and problems carry the next thing to type. Nothing is changed anywhere.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merino_edge.device.board import detect_board, load_board
from merino_edge.device.registry import DeviceEntry, Registry, choose_device
from merino_edge.errors import MerinoEdgeError
from merino_edge.flows.devices import Ask, find_entry, opened
from merino_edge.flows.measuring import what_changed
from merino_edge.flows.profile_file import read_profile
from merino_edge.progress import SILENT, Progress
from merino_edge.run import runs_root
from merino_edge.settings import config_file, data_home
from merino_edge.units import format_bytes

OK, NOTE, PROBLEM = "ok", "note", "problem"
LEAST_FREE_BYTES = 1 << 30  # on this host: a checkpoint, a bundle and their temporary copies
LEAST_MEMORY_BYTES = 256 << 20  # on a device: the runtime and a small model
EXTRAS = {
    "train": "training and torch's perplexity",
    "tflite": "TFLite files on this machine",
    "eval": "zero-shot tasks",
    "report": "the HTML report",
    "serve": "the HTTP server",
}
HOT_C = 75.0
_COOL = "let it cool, or give it a fan"
_RUNTIME_CHECK = """\
import json, sys
from merino_edge.agent.runtime_check import check_runtime
found = check_runtime(sys.argv[1])
print(json.dumps(f"{found['runtime']} {found['runtime_version']}"))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        where: `host`, or a device's name.
        what: What was looked at.
        status: `ok`, `note` or `problem`.
        found: What was found.
        mend: What to type now; None where there is nothing to do.
    """

    where: str
    what: str
    status: str
    found: str
    mend: str | None = None


def doctor(names: Sequence[str], ask: Ask | None = None, progress: Progress = SILENT) -> dict[str, Any]:
    """Look at this host and at devices.

    Args:
        names: Devices; none means all that are registered.
        ask: Puts a question to a person.
        progress: Hears which device is asked.

    Returns:
        The document of `merino-edge doctor --json`: `findings`, `problems`, `unreachable`.
    """
    entries = [find_entry(name) for name in names] if names else Registry().all()
    findings = list(check_host())
    unreachable = []
    with progress.task("looking at this host and its devices", len(entries) + 1) as task:
        task.update(1)
        for number, entry in enumerate(entries):
            task.update(number + 1, f"asking {entry.name}")
            try:
                with opened(entry, ask) as device:
                    findings += check_device(entry, device.facts())
            except MerinoEdgeError as error:
                unreachable.append(entry.name)
                findings.append(Finding(entry.name, "connection", PROBLEM, error.message, error.hint))
        task.update(len(entries) + 1)
    return {
        "findings": [asdict(finding) for finding in findings],
        "problems": sum(finding.status == PROBLEM for finding in findings),
        "unreachable": unreachable,
    }


# -- the host --


def check_host() -> Iterator[Finding]:
    """Yield what there is to say about this machine."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding("host", "python", OK, version)
    yield from _packages()
    yield _runtime("onnxruntime")
    if _installed("ai-edge-litert"):
        yield _runtime("ai-edge-litert")
    for what, folder in (("data folder", data_home()), ("runs folder", runs_root())):
        yield _folder(what, folder)
    yield _configuration()
    yield from _ssh()


def _packages() -> Iterator[Finding]:
    """Hold what the package says it needs against what is installed."""
    needed: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires("merino-edge") or []:
        name = re.split(r"[ ;<>=!~\[(]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", requirement)
        needed.setdefault(extra.group(1) if extra else "", []).append(name)
    missing = [name for name in needed.pop("", []) if not _installed(name)]
    if missing:
        yield Finding("host", "base packages", PROBLEM, f"missing: {', '.join(missing)}", "pip install merino-edge")
    else:
        yield Finding("host", "base packages", OK, f"merino-edge {importlib.metadata.version('merino-edge')}")
    for group, purpose in EXTRAS.items():
        missing = [name for name in needed.get(group, []) if not _installed(name)]
        if missing:
            mend = f"pip install 'merino-edge[{group}]'"
            yield Finding("host", f"extra [{group}]", NOTE, f"for {purpose}; missing: {', '.join(missing)}", mend)
        else:
            yield Finding("host", f"extra [{group}]", OK, f"for {purpose}")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _runtime(package: str) -> Finding:
    """Import a runtime and hold its products against numpy's, in a process of its own: it may crash."""
    done = subprocess.run([sys.executable, "-c", _RUNTIME_CHECK, package], capture_output=True, text=True, timeout=60)
    if done.returncode == 0:
        return Finding("host", package, OK, f"{json.loads(done.stdout.splitlines()[-1])} computes rightly")
    last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    mend = f"pip install --force-reinstall {package} numpy"
    return Finding("host", package, PROBLEM, f"does not work: {last}", mend)


def _folder(what: str, folder: Path) -> Finding:
    """Say whether a folder, or what it would be made in, can be written and has room."""
    place = folder
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        mend = f"make it writable: chmod u+rwx {place}"
        return Finding("host", what, PROBLEM, f"{folder} cannot be written: {error.strerror}", mend)
    if free < LEAST_FREE_BYTES:
        mend = f"free some space below {place}"
        return Finding("host", what, PROBLEM, f"{folder}: only {format_bytes(free)} free", mend)
    return Finding("host", what, OK, f"{folder}, {format_bytes(free)} free")


def _configuration() -> Finding:
    """Read the configuration as every command does."""
    try:
        name, why = choose_device(None, None)
    except MerinoEdgeError as error:
        return Finding("host", "configuration", PROBLEM, error.message, f"edit {config_file()}")
    return Finding("host", "configuration", OK, f"commands without --device mean {name} ({why})")


def _ssh() -> Iterator[Finding]:
    """Say what of OpenSSH is here; boards can be reached without it, by paramiko."""
    if shutil.which("ssh"):
        yield Finding("host", "ssh", OK, "the system's client is there (--transport openssh, ~/.ssh/config by ssh -G)")
    else:
        mend = "sudo apt install openssh-client"
        yield Finding("host", "ssh", NOTE, "no OpenSSH client: ~/.ssh/config is read by paramiko, in part", mend)
    keys = [key.name for key in (Path.home() / ".ssh").glob("id_*.pub")] if (Path.home() / ".ssh").is_dir() else []
    if keys or os.environ.get("SSH_AUTH_SOCK"):
        found = ", ".join(sorted(keys)) or "an agent"
        yield Finding("host", "ssh keys", OK, found)
    else:
        mend = "ssh-keygen -t ed25519, then ssh-copy-id USER@ADDRESS"
        yield Finding("host", "ssh keys", NOTE, "none: boards could only be reached by a password", mend)


# -- a device --


def check_device(entry: DeviceEntry, facts: Mapping[str, Any]) -> list[Finding]:
    """Return what there is to say about a device that has answered."""
    checks: tuple[Callable[[DeviceEntry, Mapping[str, Any]], Finding], ...] = (
        _board, _python, _memory, _power, _heat, _governor, _device_runtime, _profile,
    )  # fmt: skip
    return [check(entry, facts) for check in checks]


def _board(entry: DeviceEntry, facts: Mapping[str, Any]) -> Finding:
    model, detected = str(facts.get("board_model") or "unknown model"), detect_board(dict(facts))
    if detected is not None and detected != entry.board and entry.host is not None:
        title = load_board(detected).title
        mend = f"merino-edge devices add {entry.name} --host {entry.host} --profile {detected}"
        return Finding(entry.name, "board", PROBLEM, f"registered as {entry.board}, says it is a {title}", mend)
    return Finding(entry.name, "board", OK, f"{model}, {facts.get('os_image')}")


def _python(entry: DeviceEntry, facts: Mapping[str, Any]) -> Finding:
    python = facts.get("python") or {}
    found = f"{python.get('version')}, {python.get('bits')} bits, {python.get('platform')}"
    if python.get("bits") == 32:
        mend = "install a 64-bit system: runtimes for 32 bits are old or missing"
        return Finding(entry.name, "python", NOTE, found, mend)
    return Finding(entry.name, "python", OK, found)


def _memory(entry: DeviceEntry, facts: Mapping[str, Any]) -> Finding:
    memory = facts.get("memory") or {}
    available, total, swap = (memory.get(name) or 0 for name in ("available", "total", "swap_used"))
    found = f"{format_bytes(available)} of {format_bytes(total)} available"
    if available < LEAST_MEMORY_BYTES:
        return Finding(entry.name, "memory", PROBLEM, found, f"stop what else runs on {entry.name}")
    if swap > LEAST_MEMORY_BYTES:
        mend = f"stop what else runs on {entry.name}: a measurement during which it swaps does not count"
        return Finding(entry.name, "memory", NOTE, f"{found}, {format_bytes(swap)} swapped out", mend)
    return Finding(entry.name, "memory", OK, found)


def _power(entry: DeviceEntry, facts: Mapping[str, Any]) -> Finding:
    """Read the firmware's throttle bits: 0 and 16 are under-voltage, now and since boot."""
    bits = facts.get("throttled_bits")
    if not isinstance(bits, int):
        return Finding(entry.name, "power", OK, "nothing here tells about the supply")
    if bits & 1:
        return Finding(entry.name, "power", PROBLEM, "under-voltage now", "use a stronger power supply and cable")
    if bits >> 16 & 1:
        mend = "use a stronger power supply and cable"
        return Finding(entry.name, "power", NOTE, "there was under-voltage since it was started", mend)
    return Finding(entry.name, "power", OK, "no under-voltage since it was started")


def _heat(entry: DeviceEntry, facts: Mapping[str, Any]) -> Finding:
    degrees, bits = facts.get("temperature_c"), facts.get("throttled_bits") or 0
    if bits & 0xE:
        return Finding(
            entry.name, "heat", PROBLEM, "slowed down by its temperature now", "let it cool, or give it a fan"
        )
    if degrees is None:
        return Finding(entry.name, "heat", OK, "nothing here tells its temperature")
    if degrees > HOT_C:
        return Finding(entry.name, "heat", NOTE, f"{degrees:.0f} °C", _COOL)
    return Finding(entry.name, "heat", OK, f"{degrees:.0f} °C")


def _governor(entry: DeviceEntry, facts: Mapping[str, Any]) -> Finding:
    governor = facts.get("governor")
    if governor in (None, "performance"):
        return Finding(entry.name, "governor", OK, str(governor or "no frequency governor"))
    mend = "on the device: echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
    return Finding(entry.name, "governor", NOTE, f"{governor}: clocks move while it is measured", mend)


def _device_runtime(entry: DeviceEntry, facts: Mapping[str, Any]) -> Finding:
    runtimes = [r for r in facts.get("runtimes") or [] if isinstance(r, Mapping)]
    if not runtimes:
        mend = f"nothing to do; or at once: merino-edge profile {entry.name}"
        return Finding(entry.name, "runtime", OK, "none yet: it is brought along by the first command", mend)
    words = sorted({f"{r.get('runtime')} {r.get('runtime_version')}" for r in runtimes})
    return Finding(entry.name, "runtime", OK, ", ".join(words))


def _profile(entry: DeviceEntry, facts: Mapping[str, Any]) -> Finding:
    again = f"merino-edge profile {entry.name}"
    try:
        profile = read_profile(entry.name)
    except MerinoEdgeError as error:
        return Finding(entry.name, "profile", PROBLEM, error.message, again)
    if profile is None:
        return Finding(entry.name, "profile", NOTE, "not profiled: searches go by an estimate", again)
    for recipe in profile.recipes.values():
        changed = what_changed(recipe.key, facts)
        if changed:
            return Finding(entry.name, "profile", PROBLEM, f"out of date: {changed}", again)
    errors = []
    for label, recipe in profile.recipes.items():
        mape = recipe.latency["tg"].accuracy.get("mape")
        errors.append(f"{label} ({recipe.models} models" + (f", tg off by {mape:.1%} on average)" if mape else ")"))
    return Finding(entry.name, "profile", OK, ", ".join(errors))
