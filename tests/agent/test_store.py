"""Objects, uploads and the lock of the agent's folder."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from merino_edge.agent.errors import AgentError
from merino_edge.agent.store import Store

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def upload(store: Store, content: bytes, digest: str, offset: int = 0) -> None:
    with store.open_part(digest, offset) as part:
        part.write(content[offset:])
        store.finish_part(digest, part)


def test_folder_is_private(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    assert {stat.S_IMODE(p.stat().st_mode) for p in [store.root, *store.root.iterdir()]} == {0o700}


def test_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(AgentError, match="is a link"):
        Store(tmp_path / "link")


def test_upload_becomes_an_object(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.missing([(DIGEST, len(CONTENT))]) == [(DIGEST, 0)]
    upload(store, CONTENT, DIGEST)
    assert store.missing([(DIGEST, len(CONTENT))]) == []
    assert store.object_path(DIGEST).read_bytes() == CONTENT


def test_cut_upload_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.open_part(DIGEST, 0) as stream:
        stream.write(CONTENT[:1000])
    assert store.missing([(DIGEST, len(CONTENT))]) == [(DIGEST, 1000)]
    upload(store, CONTENT, DIGEST, 1000)
    assert store.object_path(DIGEST).read_bytes() == CONTENT


def test_upload_beyond_what_is_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="stands at 0"), Store(tmp_path).open_part(DIGEST, 5):
        pass


def test_corrupt_upload_is_refused_and_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(AgentError, match="another SHA-256"):
        upload(store, CONTENT[:-1] + b"x", DIGEST)
    assert list((tmp_path / "objects").iterdir()) == []


def test_object_damaged_on_disk_is_refused_and_sent_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    upload(store, CONTENT, DIGEST)
    store.object_path(DIGEST).write_bytes(b"y" + CONTENT[1:])
    with pytest.raises(AgentError, match="damaged"):
        store.verify(DIGEST, len(CONTENT))
    assert store.missing([(DIGEST, len(CONTENT))]) == [(DIGEST, 0)]


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "A" * 64, DIGEST + "/x", None, 5])
def test_what_is_no_digest_is_no_file_name(tmp_path: Path, digest: object) -> None:
    with pytest.raises(AgentError, match="no SHA-256"):
        Store(tmp_path).object_path(digest)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "a\0b"])
def test_bundle_file_names_cannot_leave_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(AgentError, match="no name"):
        Store(tmp_path).lay_out(tmp_path / "stage" / "x", [(name, DIGEST)])


def test_more_than_the_disk_holds_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="are free"):
        Store(tmp_path).check_space(1 << 60)


def test_second_holder_of_the_lock_is_told_who_has_it(tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    with first.lock("measure"):
        with (
            pytest.raises(AgentError, match=f"process {os.getpid()} works on the device \\(measure\\) since") as caught,
            second.lock("install"),
        ):
            pass
        assert caught.value.kind == "busy"
    with second.lock("install"):
        pass


def test_lock_is_free_after_its_block_even_if_a_child_inherited_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.lock("generate") as handle:
        inherited = os.dup(handle)
    with store.lock("measure"):
        pass
    os.close(inherited)
