"""Installations that are cut anywhere: `current` is whole, old or new, and the next one succeeds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from merino_edge.agent.errors import AgentError
from merino_edge.agent.releases import Releases
from merino_edge.agent.store import Store

STATE_CHANGES = ("open", "write", "fsync", "rename", "replace", "link", "symlink", "unlink", "mkdir", "rmdir")


def add_object(store: Store, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    with store.open_part(digest, 0) as part:
        part.write(content)
        store.finish_part(digest, part)
    return digest


def add_bundle(store: Store, text: str) -> str:
    content = text.encode() * 100
    file = {"name": "model.onnx", "sha256": add_object(store, content), "bytes": len(content)}
    return add_object(store, json.dumps({"format": "onnx", "recipe": text, "files": [file]}).encode())


def passed(folder: Path) -> dict[str, object]:
    return {"checked": (folder / "model.onnx").stat().st_size}


def failed(folder: Path) -> dict[str, object]:
    raise AgentError("smoke", "wrong logits")


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(Store(tmp_path / "root"))


def test_install_switches_to_the_new_release(releases: Releases) -> None:
    digest = add_bundle(releases.store, "one")
    assert releases.install(digest, "r", passed) == {"release": 1, "sha256": digest, "previous": None}
    assert releases.install(add_bundle(releases.store, "two"), "r", passed)["previous"] == 1
    assert releases.current() == 2
    assert os.readlink(releases.link) == "releases/2"


def test_release_that_fails_its_trial_leaves_the_old_one_and_nothing_else(releases: Releases) -> None:
    releases.install(add_bundle(releases.store, "one"), "r", passed)
    with pytest.raises(AgentError, match="wrong logits"):
        releases.install(add_bundle(releases.store, "two"), "r", failed)
    assert releases.current() == 1
    assert [p.name for p in releases.folder.iterdir()] == ["1"]
    assert not releases.was_cut()


def test_rollback_checks_the_files_first(releases: Releases) -> None:
    releases.install(add_bundle(releases.store, "one"), "r", passed)
    releases.install(add_bundle(releases.store, "two"), "r", passed)
    assert releases.activate(1) == {"release": 1, "previous": 2}
    (releases.folder / "2" / "model.onnx").write_bytes(b"x")
    with pytest.raises(AgentError, match="damaged"):
        releases.activate(2)
    assert releases.current() == 1


def test_collect_keeps_what_releases_need_and_frees_the_rest(releases: Releases) -> None:
    for text in ("one", "two", "three"):
        releases.install(add_bundle(releases.store, text), "r", passed)
    releases.activate(1)
    stray = add_object(releases.store, b"stray")
    assert releases.collect(1)["releases_removed"] == [2]
    assert releases.numbers() == [1, 3]
    assert not releases.store.object_path(stray).exists()
    for number in (1, 3):
        releases.verify(number)


def test_trim_removes_the_oldest_objects_that_no_release_needs(releases: Releases) -> None:
    releases.install(add_bundle(releases.store, "one"), "r", passed)
    spare = [add_object(releases.store, bytes([number]) * 1000) for number in range(4)]
    for age, digest in enumerate(spare):
        os.utime(releases.store.object_path(digest), (age, age))
    releases.trim(2000, [spare[0]])
    assert [releases.store.object_path(d).exists() for d in spare] == [True, False, True, True]
    releases.verify(1)


@pytest.mark.parametrize("name", ["manifest.json", "release.json"])
def test_a_bundle_cannot_bring_its_own_records(releases: Releases, name: str) -> None:
    digest = add_object(releases.store, b"x")
    manifest = add_object(
        releases.store, json.dumps({"files": [{"name": name, "sha256": digest, "bytes": 1}]}).encode()
    )
    with pytest.raises(AgentError, match="cannot be called"):
        releases.install(manifest, "r", passed)


def cut_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that dies at its `step`-th state change; say whether it came so far."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    count = 0

    def dying(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return original(*arguments, **named)

        return call

    for name in STATE_CHANGES:
        setattr(os, name, dying(getattr(os, name)))
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("what", ["first install", "upgrade", "rollback", "collect"])
def test_every_cut_leaves_a_whole_release_and_a_next_install_that_works(tmp_path: Path, what: str) -> None:
    cuts = 0
    for step in range(1, 500):
        releases = Releases(Store(tmp_path / f"{step}"))
        old, new, later = (add_bundle(releases.store, text) for text in ("old", "new", "later"))
        if what != "first install":
            releases.install(old, "r", passed)
        if what in ("rollback", "collect"):
            releases.install(new, "r", passed)
        before = releases.current()
        work: dict[str, Callable[[], object]] = {
            "first install": lambda releases=releases, old=old: releases.install(old, "r", passed),
            "upgrade": lambda releases=releases, new=new: releases.install(new, "r", passed),
            "rollback": lambda releases=releases: releases.activate(1),
            "collect": lambda releases=releases: releases.collect(1),
        }
        was_cut = cut_at(step, work[what])
        current = releases.current()
        assert current == before or current == {"first install": 1, "upgrade": 2, "rollback": 1, "collect": 2}[what]
        if current is not None:
            releases.verify(current)
        add_bundle(releases.store, "later")
        number = releases.install(later, "r", passed)["release"]
        releases.verify(int(str(number)))
        assert releases.current() == number
        assert not releases.was_cut()
        if not was_cut:
            break
        cuts += 1
    assert 5 < cuts < 499
