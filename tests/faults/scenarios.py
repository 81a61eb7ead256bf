"""What is cut: the agent's own store at work, in a process of its own; and implementations that take no care.

python scenarios.py ROOT SCENARIO SEED

Runs on the standard library alone, so that a thousand processes cost little.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from merino_edge.agent import releases as releases_module
from merino_edge.agent import store as store_module
from merino_edge.agent.errors import AgentError
from merino_edge.agent.releases import Releases
from merino_edge.agent.runtimes import Runtimes
from merino_edge.agent.store import Store

SCENARIOS = ("first install", "upgrade", "rollback", "collect", "measure", "runtime")
NAIVE = ("naive put", "no folder is flushed", "no file is flushed")


def bundle_files(text: str, seed: int) -> dict[str, bytes]:
    """Return the files of a bundle: their number and sizes follow from the seed."""
    draw = random.Random(f"{text} {seed}")
    count = draw.randrange(1, 5)
    return {f"part{n}": f"{text} {n} ".encode() * draw.randrange(1, 3000) for n in range(count)}


def upload(store: Store, content: bytes) -> str:
    """Bring an object into the store as an upload does: resumed where a part lies there, in two writes."""
    digest = hashlib.sha256(content).hexdigest()
    for missing, held in store.missing([(digest, len(content))]):
        try:
            _send(store, missing, content, held)
        except AgentError as error:
            if error.kind != "corrupt" or held == 0:
                raise
            _send(store, missing, content, 0)  # as the host does: the part was damaged
    return digest


def _send(store: Store, digest: str, content: bytes, held: int) -> None:
    with store.open_part(digest, held) as part:
        middle = held + (len(content) - held) // 2
        for chunk in (content[held:middle], content[middle:]):
            if chunk:
                part.write(chunk)
        store.finish_part(digest, part)


def push(store: Store, text: str, seed: int) -> str:
    """Upload a bundle; return its manifest's digest."""
    files = bundle_files(text, seed)
    named = [{"name": n, "sha256": upload(store, c), "bytes": len(c)} for n, c in files.items()]
    return upload(store, json.dumps({"format": "onnx", "recipe": text, "files": named}).encode())


def passed(folder: Path) -> dict[str, object]:
    """Stand for a trial that was passed."""
    return {"files": len(list(folder.iterdir()))}


def install(root: Path, text: str, seed: int) -> int:
    """Start as the agent does, push a bundle and install it under the lock; return the release's number."""
    store = Store(root)
    releases = Releases(store)
    start(store, releases)
    digest = push(store, text, seed)
    with store.lock("install"):
        return int(str(releases.install(digest, "r", passed)["release"]))


def start(store: Store, releases: Releases) -> None:
    """Finish or undo what was cut, as every start of the agent does."""
    if releases.was_cut():
        with store.lock("recovery"):
            releases.recover()


def prepare(root: Path, scenario: str, seed: int) -> None:
    """Make what lies there before the scenario."""
    if scenario in ("first install", "naive put"):
        return
    install(root, "old", seed)
    if scenario in ("rollback", "collect"):
        install(root, "new", seed)
    if scenario == "collect":
        install(root, "newest", seed)
        upload(Store(root), b"stray" * 999)


def run(root: Path, scenario: str, seed: int) -> None:
    """Do the work that is cut."""
    if scenario == "naive put":
        return _naive(root, seed)
    if scenario in NAIVE:
        _without_care(scenario)
    store = Store(root)
    releases = Releases(store)
    start(store, releases)
    if scenario in ("first install", "upgrade", *NAIVE):
        install(root, "old" if scenario == "first install" else "new", seed)
    elif scenario == "runtime":
        _runtime(store)
    elif scenario == "measure":
        digest = push(store, "measured", seed)
        with store.lock("measure"):
            shutil.rmtree(str(releases.stage(digest)))
        releases.trim(0, [])
    else:
        with store.lock(scenario):
            if scenario == "rollback":
                releases.activate(1)
            else:
                releases.collect(1)
    return None


def _runtime(store: Store) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("one.py", "package/__init__.py", "package/two.py"):
            archive.writestr(name, "x = 1\n" * 50)
    digest = upload(store, stream.getvalue())
    runtimes = Runtimes(store)
    with store.lock("runtime"):
        folder = runtimes.unzip("r-1", [("r.whl", digest)])
        runtimes.add("r-1", folder, lambda python, path: {"runtime": "none"})


def _without_care(what: str) -> None:
    """Take one kind of care away from the real implementation."""

    def nothing(*arguments: object) -> None:
        pass

    if what == "no folder is flushed":
        releases_module.sync_folder = store_module.sync_folder = nothing
    else:
        os.fsync = nothing


def _naive(root: Path, seed: int) -> None:
    """Write over the files in use, as `scp` does."""
    for text in ("old", "new"):
        folder = root / "model"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in bundle_files(text, seed).items():
            with open(str(folder / name), "wb", buffering=0) as stream:
                stream.write(content[: len(content) // 2])
                stream.write(content[len(content) // 2 :])


def naive_is_whole(root: Path, seed: int) -> bool:
    """Say whether what the naive implementation left is one of its two models."""
    found = {p.name: p.read_bytes() for p in (root / "model").iterdir()} if (root / "model").is_dir() else {}
    old, new = (bundle_files(text, seed) for text in ("old", "new"))
    return not found or found == old or found == {**old, **new}


def allowed(scenario: str) -> set[int | None]:
    """Return the releases that may be current after the scenario was cut anywhere."""
    return {
        "first install": {None, 1},
        "upgrade": {1, 2},
        "rollback": {2, 1},
        "collect": {3},
        "measure": {1},
        "runtime": {1},
    }.get(scenario, {1, 2})


def finished(scenario: str) -> int:
    """Return the release that must be current once the scenario said that it was done."""
    return {"first install": 1, "upgrade": 2, "rollback": 1, "collect": 3, "measure": 1, "runtime": 1}.get(scenario, 2)


def check(root: Path, expected: set[int | None], seed: int) -> str | None:
    """Return what is wrong after a cut, None where nothing is: whole, old or new, and the next install works."""
    try:
        releases = Releases(Store(root))
        link = root / "current"
        number = releases.current()
        if number is None and os.path.lexists(str(link)):
            return f"current leads to {os.readlink(str(link))}, which is not there"
        if number not in expected:
            return f"release {number} is current, allowed: {sorted(map(str, expected))}"
        if number is not None:
            releases.verify(number)
        later = install(root, "later", seed)
        releases = Releases(Store(root))
        if releases.current() != later:
            return f"the next install made release {later}, and {releases.current()} is current"
        for whole in releases.numbers():
            releases.verify(whole)
            releases.describe(whole)
        with releases.store.lock("collect"):
            releases.collect(1)
        left = sorted(p.name for p in root.iterdir() if p.name not in KEPT)
        odd = [p.name for p in (root / "objects").iterdir() if not p.name.isalnum()]
        odd += [p.name for p in (root / "releases").iterdir() if p.name != str(later)]
        if left or odd:
            return f"left over: {left} {odd}"
        Runtimes(releases.store).all()
    except (AgentError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


KEPT = ("objects", "releases", "runtimes", "stage", "current", "lock")

if __name__ == "__main__":
    action: dict[str, Callable[[Path, str, int], None]] = {"prepare": prepare, "run": run}
    os.umask(0o077)
    action[sys.argv[1]](Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
