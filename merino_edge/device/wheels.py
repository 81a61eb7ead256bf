"""Which runtime wheels fit a device: a lock with the digest of every one, and what is known to fail where.

`wheels.json`, written by `tools/lock_wheels.py`, has a set of wheels for each runtime, version, Python
and machine. Those that fit a device are tried from the best version down. They are downloaded on the
host, by pip from the index it is configured for, and kept in the cache; a wheel with another digest
than the lock's is never used.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from merino_edge.device.records import clean_text
from merino_edge.errors import DeviceError
from merino_edge.files import sha256_file
from merino_edge.settings import cache_home

MAX_TRIES = 3  # versions that are sent to a device one after the other


@dataclass(frozen=True)
class WheelSet:
    """The wheels of one runtime in one version for one place.

    Attributes:
        runtime: The package.
        version: Of the runtime.
        python: `3.11`.
        machine: `aarch64`.
        glibc_minor: The oldest glibc 2.x all of them run on.
        wheels: File name -> SHA-256.
    """

    runtime: str
    version: str
    python: str
    machine: str
    glibc_minor: int
    wheels: Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """A runtime that fails on some CPUs, by what those have or lack in the kernel's list of features.

    Attributes:
        runtime: The package.
        version: That fails.
        machine: On which.
        lacking: It fails where the CPU lacks this.
        having: It fails where the CPU has this.
        what: How it fails.
    """

    runtime: str
    version: str
    machine: str
    lacking: str | None
    having: str | None
    what: str

    def strikes(self, runtime: str, version: str, machine: str, features: Collection[str]) -> bool:
        """Say whether this runtime fails on a CPU with these features."""
        if (self.runtime, self.version, self.machine) != (runtime, version, machine):
            return False
        return (self.lacking is not None and self.lacking not in features) or (self.having or "") in features


KNOWN_FAULTS = (
    # microsoft/onnxruntime issues 24112 and 23957
    Fault("onnxruntime", "1.21.0", "aarch64", "asimddp", None, "dies of an illegal instruction on cores like this"),
    # microsoft/onnxruntime issue 28571
    Fault("onnxruntime", "1.27.0", "aarch64", None, "sme", "computes wrong convolutions on cores with SME"),
)


def known_fault(runtime: str, version: str, machine: str, features: Collection[str]) -> str | None:
    """Return how a runtime is known to fail on a CPU, None where nothing is known against it.

    Args:
        runtime: The package.
        version: Its version.
        machine: `aarch64` or another.
        features: The kernel's names: `asimddp`, `sme`, ...
    """
    for fault in KNOWN_FAULTS:
        if fault.strikes(runtime, version, machine, features):
            return fault.what
    return None


@cache
def locked_sets() -> tuple[WheelSet, ...]:
    """Return all sets of the lock, the best version of each runtime first."""
    text = resources.files("merino_edge.device").joinpath("wheels.json").read_text(encoding="utf-8")
    return tuple(
        WheelSet(s["runtime"], s["version"], s["python"], s["machine"], int(s["glibc"].partition(".")[2]), s["wheels"])
        for s in json.loads(text)["sets"]
    )


def fitting_sets(package: str, python: Mapping[str, Any], features: Collection[str] = ()) -> list[WheelSet]:
    """Return the sets that can run under an interpreter, the best version first.

    Args:
        package: The runtime.
        python: The `python` facts of a device: its user land decides, not its kernel.
        features: What the kernel says the CPU can do.

    Raises:
        DeviceError: none is made for it; the message says what would help.
    """
    machine = re.fullmatch(r"linux-(\w+)", str(python.get("platform")))
    glibc = re.fullmatch(r"2\.(\d{1,3})", str(python.get("libc_version")))
    if machine is None or glibc is None or python.get("libc") != "glibc":
        raise DeviceError(
            f"no wheels of {package} are made for {clean_text(python.get('platform'), 60)} "
            f"with {clean_text(python.get('libc') or 'this C library', 20)}",
            hint=f"install {package} on the device by hand, then try again",
        )
    if python.get("bits") == 32:
        raise DeviceError(
            f"the device's user land is 32-bit, and no wheels of {package} are made for it",
            hint="install a 64-bit system on the board (Raspberry Pi OS 64-bit)",
        )
    version = ".".join(str(python.get("version")).split(".")[:2])
    own = [s for s in locked_sets() if (s.runtime, s.machine) == (package, machine[1])]
    sets = [s for s in own if s.python == version and s.glibc_minor <= int(glibc[1])]
    sets = [s for s in sets if not known_fault(package, s.version, s.machine, features)]
    if sets:
        return sets
    if not own:
        others = sorted({s.machine for s in locked_sets() if s.runtime == package})
        raise DeviceError(
            f"no wheels of {package} are made for {clean_text(machine[1], 30)}; there are some for {', '.join(others)}",
            hint=f"install {package} on the device by hand, then try again",
        )
    pythons = sorted({s.python for s in own if s.glibc_minor <= int(glibc[1])}, key=lambda p: int(p[2:]))
    if not pythons:
        least = min(s.glibc_minor for s in own)
        raise DeviceError(
            f"the device's C library is glibc 2.{int(glibc[1])}, and {package} needs 2.{least} or newer",
            hint="install a newer system on the board",
        )
    raise DeviceError(
        f"no wheels of {package} are made for Python {clean_text(version, 20)}; there are some for "
        + ", ".join(pythons),
        hint=f"on the device: sudo apt install python{pythons[-1]} (or another of these); nothing else is needed",
    )


def fetch(wheels: WheelSet) -> dict[str, Path]:
    """Return the wheels of a set on this host, SHA-256 -> file, downloading what the cache lacks.

    Raises:
        DeviceError: they cannot be had, or are not what the lock says.
    """
    cached = cache_home() / "wheels"
    cached.mkdir(mode=0o700, parents=True, exist_ok=True)
    missing = {name: sha for name, sha in wheels.wheels.items() if not _is_whole(cached / name, sha)}
    if missing:
        with tempfile.TemporaryDirectory(prefix="download-", dir=cached) as folder:
            _download(wheels, missing, Path(folder))
            for name, sha in missing.items():
                if not _is_whole(Path(folder) / name, sha):
                    raise DeviceError(
                        f"what was downloaded as {name} is not the file that was locked",
                        hint="is the package index of this host a mirror that changes files?",
                    )
                os.replace(Path(folder) / name, cached / name)
    return {sha: cached / name for name, sha in wheels.wheels.items()}


def _is_whole(path: Path, sha: str) -> bool:
    return path.is_file() and sha256_file(path) == sha


def _download(wheels: WheelSet, missing: Mapping[str, str], folder: Path) -> None:
    """Let pip download wheels for another machine, by digest and nothing else."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", wheels.python]
    for minor in range(wheels.glibc_minor, 16, -1):
        command += ["--platform", f"manylinux_2_{minor}_{wheels.machine}"]
    command += ["--platform", f"manylinux2014_{wheels.machine}"]
    lines = []
    for name, sha in missing.items():
        project, version = name.split("-")[:2]
        lines.append(f"{project}=={version} --hash=sha256:{sha}")
    wanted = folder / "wanted.txt"
    wanted.write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        done = subprocess.run([*command, "-r", str(wanted)], capture_output=True, text=True, timeout=900)
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or [done.stderr]
        problem = clean_text(said[0].removeprefix("ERROR: "), 300) if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        raise DeviceError(
            f"the wheels of {wheels.runtime} {wheels.version} could not be downloaded: {problem}",
            hint="this host needs a package index for it; the device needs no network",
        )
