"""A bundle from a file or a URL: only with the right digest, only what belongs in it, gone after use."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from merino_edge.errors import DeployError, InvalidFileError, UsageError
from merino_edge.flows.fetch import fetched


def archive(folder: Path, name: str = "demo.tar.gz", **files: str) -> tuple[Path, str]:
    """Write an archive of files and return it with its digest."""
    path = folder / name
    with tarfile.open(path, "w:gz") as stream:
        for inside, text in files.items():
            info = tarfile.TarInfo(inside.replace("__", "/"))
            info.size = len(text)
            stream.addfile(info, io.BytesIO(text.encode()))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


MANIFEST = {"demo__manifest.json": "{}", "demo__model.onnx": "graph"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Serve the folder on the loopback address until the test ends."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_archive_is_unpacked_and_gone_after_use(tmp_path: Path) -> None:
    path, digest = archive(tmp_path, **MANIFEST)
    with fetched(str(path), digest.upper()) as folder:
        assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "model.onnx"]
    assert not folder.exists()
    assert path.exists()


def test_bundle_comes_over_the_network(tmp_path: Path, served: str) -> None:
    _, digest = archive(tmp_path, **MANIFEST)
    with fetched(f"{served}/demo.tar.gz", digest) as folder:
        assert (folder / "model.onnx").read_text() == "graph"


def test_other_digest_is_refused_before_unpacking(tmp_path: Path, served: str) -> None:
    archive(tmp_path, **MANIFEST)
    with pytest.raises(InvalidFileError, match="SHA-256"), fetched(f"{served}/demo.tar.gz", "0" * 64):
        pass


def test_url_needs_a_digest(served: str) -> None:
    with pytest.raises(UsageError, match="--sha256"), fetched(f"{served}/demo.tar.gz", None):
        pass


def test_missing_file_on_the_server_is_named(served: str) -> None:
    with pytest.raises(DeployError, match="404"), fetched(f"{served}/none.tar.gz", "0" * 64):
        pass


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"__etc__evil": "x", "manifest.json": "{}"}, "'/etc/evil', which belongs"),
        ({"..__evil": "x", "manifest.json": "{}"}, r"'\.\./evil', which belongs"),
        ({"a__..__..__evil": "x", "manifest.json": "{}"}, "which belongs"),
        ({"readme": "x"}, "0 bundles"),
        ({"a__manifest.json": "{}", "b__manifest.json": "{}"}, "2 bundles"),
    ],
)
def test_what_belongs_in_no_bundle_is_refused(tmp_path: Path, files: dict[str, str], said: str) -> None:
    path, _ = archive(tmp_path / "..", name=f"{tmp_path.name}.tar.gz", **files)
    with pytest.raises(InvalidFileError, match=said), fetched(str(path), None):
        pass
    assert not (tmp_path.parent / "evil").exists()


def test_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "link.tar"
    with tarfile.open(path, "w") as stream:
        info = tarfile.TarInfo("model.onnx")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        stream.addfile(info)
    with pytest.raises(InvalidFileError, match=r"model\.onnx"), fetched(str(path), None):
        pass


@pytest.mark.parametrize("source", ["ftp://host/x.tar", "no/such/file"])
def test_unknown_sources_are_usage_errors(source: str) -> None:
    with pytest.raises(UsageError), fetched(source, None):
        pass


def test_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_text("no archive")
    with pytest.raises(InvalidFileError, match="no archive"), fetched(str(tmp_path / "x.tar.gz"), None):
        pass
