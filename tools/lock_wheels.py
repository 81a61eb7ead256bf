"""Write the lock of runtime wheels for boards: `merino_edge/device/wheels.json`.

    .venv/bin/python tools/lock_wheels.py [PACKAGE ...]

For each runtime, version, Python and machine, pip resolves what would be installed there and reports
the digest of each wheel; nothing is downloaded. What does not exist is left out. `device/wheels.py`
reads the lock and takes only wheels with these digests. Packages not named keep their entries.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import parse_wheel_filename

LOCK = Path(__file__).resolve().parent.parent / "merino_edge" / "device" / "wheels.json"
MACHINES = ("aarch64", "x86_64")
PYTHONS = tuple(f"3.{minor}" for minor in range(8, 15))
HIGHEST_GLIBC = 41
SETS_AT_ONCE = 3


@dataclass(frozen=True)
class Runtime:
    """A runtime: its versions, the best first, and what it needs beside itself.

    Attributes:
        versions: To fall back through. onnxruntime 1.21.0 is not among them: it dies of an illegal
            instruction on cores without the dot product; nor is 1.27.0: wrong numbers with SME.
        others: Requirements without which it does not import; `[]` and `dependencies` where all count.
        dependencies: Take all that its metadata asks for.
    """

    versions: tuple[str, ...]
    others: tuple[str, ...]
    dependencies: bool = False


RUNTIMES = {
    "onnxruntime": Runtime(("1.32.0", "1.28.0", "1.24.4", "1.23.2", "1.22.1", "1.20.1", "1.19.2"), ("numpy",)),
    "ai-edge-litert": Runtime(("2.3.0", "1.4.0"), ("numpy",), dependencies=True),
    "tflite-runtime": Runtime(("2.14.0",), ("numpy<2",)),
    "tokenizers": Runtime(("0.23.3", "0.22.2", "0.21.4", "0.20.3"), ()),  # for a release's own run.py
}


def resolve(package: str, version: str, python: str, machine: str) -> dict[str, Any] | None:
    """Return the set of wheels for one place, None where there is none."""
    runtime = RUNTIMES[package]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
    command += ["--ignore-installed", "--report", "-", "--target", "unused", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python]
    for minor in range(HIGHEST_GLIBC, 16, -1):
        command += ["--platform", f"manylinux_2_{minor}_{machine}"]
    command += ["--platform", f"manylinux2014_{machine}", *([] if runtime.dependencies else ["--no-deps"])]
    command += [f"{package}=={version}", *runtime.others]
    done = subprocess.run(command, capture_output=True, text=True)
    print(" ".join((package, version, python, machine)), "none" if done.returncode else "found", flush=True)
    if done.returncode:
        return None
    wheels = {}
    for item in json.loads(done.stdout)["install"]:
        name = item["download_info"]["url"].rpartition("/")[2]
        wheels[name] = item["download_info"]["archive_info"]["hashes"]["sha256"]
    glibc = max(lowest_glibc(name) for name in wheels)
    place = {"runtime": package, "version": version, "python": python, "machine": machine}
    return {**place, "glibc": f"2.{glibc}", "wheels": dict(sorted(wheels.items()))}


def lowest_glibc(wheel: str) -> int:
    """Return the minor of the oldest glibc that a wheel's name allows; 0 where it does not care."""
    platforms = {tag.platform for tag in parse_wheel_filename(wheel)[3]}
    if "any" in platforms:
        return 0
    found = [int(match[1]) for name in platforms if (match := re.match(r"manylinux_2_(\d+)_", name))]
    found += [17 for name in platforms if name.startswith("manylinux2014_")]
    return min(found)


def places(packages: list[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield each runtime, version, Python and machine, the best version first."""
    for package in packages:
        for machine in MACHINES:
            for python in PYTHONS:
                for version in RUNTIMES[package].versions:
                    yield package, version, python, machine


def main() -> int:
    """Resolve all and write the lock."""
    packages = sys.argv[1:] or list(RUNTIMES)
    unknown = [package for package in packages if package not in RUNTIMES]
    if unknown:
        print(f"unknown runtime: {', '.join(unknown)}; known: {', '.join(RUNTIMES)}", file=sys.stderr)
        return 2
    kept = json.loads(LOCK.read_text(encoding="utf-8"))["sets"] if LOCK.exists() else []
    asked = list(places(packages))
    with ThreadPoolExecutor(SETS_AT_ONCE) as pool:
        found = [each for each in pool.map(lambda place: resolve(*place), asked) if each is not None]
    sets = [*(each for each in kept if each["runtime"] not in packages), *found]
    lines = ",\n  ".join(json.dumps(each) for each in sets)
    LOCK.write_text(f'{{"schema_version": 1, "sets": [\n  {lines}\n]}}\n', encoding="utf-8")
    print(f"{LOCK.name}: {len(found)} sets of wheels for {', '.join(packages)}, of {len(asked)} asked for")
    return 0


if __name__ == "__main__":
    sys.exit(main())
