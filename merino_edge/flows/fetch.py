"""A bundle from a file or from the network: checked against its digest, unpacked, gone after use.

An archive (tar, also gz, xz or bz2) holds one bundle folder. What comes over the network must be named
with its SHA-256; nothing is unpacked before the digest agrees, and nothing outside the folder.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from merino_edge.bundle import MANIFEST
from merino_edge.errors import DeployError, InvalidFileError, UsageError
from merino_edge.files import sha256_file
from merino_edge.progress import SILENT, Progress

MAX_BYTES = 8 << 30  # of an archive, and of what is in it
TIMEOUT_S = 60.0
CHUNK = 1 << 20


@contextmanager
def fetched(source: str, sha256: str | None, progress: Progress = SILENT) -> Iterator[Path]:
    """Give the folder of a bundle for as long as it is needed.

    Args:
        source: A bundle folder, an archive of one, or an http(s) URL of an archive.
        sha256: Of the archive, in hex; a URL needs it.
        progress: Told of the download.

    Raises:
        UsageError: the digest is missing or none, or there is no such file.
        InvalidFileError: the digest is another, or the archive holds no bundle.
        DeployError: the download failed.
    """
    remote = re.match(r"https?://", source) is not None
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"--sha256 must be 64 hexadecimal digits, not '{sha256}'")
    if remote and sha256 is None:
        raise UsageError("a bundle from the network needs --sha256", hint="its release says it: --sha256 HEX")
    if not remote and "://" in source:
        raise UsageError(f"cannot fetch {source}", hint="use http://, https:// or a path")
    path = Path(source)
    if not remote and not path.exists():
        raise UsageError(f"bundle {source} does not exist", hint="give a bundle folder, an archive of one, or a URL")
    if not remote and path.is_dir():
        if sha256 is not None:
            raise UsageError("--sha256 goes with an archive", hint="a folder's manifest holds a digest of each file")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="merino-edge-") as scratch:
        archive = _download(source, Path(scratch) / "archive", progress) if remote else path
        found = sha256_file(archive)
        if sha256 is not None and found != sha256.lower():
            raise InvalidFileError(
                f"{source} has the SHA-256 {found}, not {sha256.lower()}", hint="do not use it; fetch it again"
            )
        yield _unpack(archive, Path(scratch) / "bundle", source)


def _download(url: str, target: Path, progress: Progress) -> Path:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, open(target, "wb") as stream:  # noqa: S310  http(s)
            total = int(answer.headers.get("Content-Length") or 0)
            with progress.task("downloading the bundle", float(max(total, 1))) as task:
                done = 0
                while chunk := answer.read(CHUNK):
                    done += len(chunk)
                    if done > MAX_BYTES:
                        raise DeployError(f"{url} is larger than {MAX_BYTES >> 30} GiB", hint="is this a bundle?")
                    stream.write(chunk)
                    task.update(float(min(done, max(total, 1))))
            if total and done != total:
                raise DeployError(f"{url} ended after {done} of {total} bytes", hint="try again")
    except urllib.error.HTTPError as error:
        raise DeployError(f"{url} answered {error.code} {error.reason}", hint="is the address right?") from error
    except OSError as error:  # URLError and time-outs among them
        reason = getattr(error, "reason", None) or error
        raise DeployError(f"cannot fetch {url}: {reason}", hint="is there a network, and room on the disk?") from error
    return target


def _write(stream: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write one member as a plain file or folder of ours: no owner, mode or time of the archive."""
    content = stream.extractfile(member) if member.isfile() else None
    (path.parent if content else path).mkdir(parents=True, exist_ok=True)
    if content:
        with content, open(path, "wb") as file:
            shutil.copyfileobj(content, file, CHUNK)


def _unpack(archive: Path, target: Path, source: str) -> Path:
    try:
        with tarfile.open(archive, "r:*") as stream:
            size = 0
            for member in stream:
                size += member.size
                place = PurePosixPath(member.name)
                inside = not place.is_absolute() and ".." not in place.parts
                if not inside or not (member.isfile() or member.isdir()) or size > MAX_BYTES:
                    raise InvalidFileError(f"{source} holds '{member.name}', which belongs in no bundle")
                _write(stream, member, target / place)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise InvalidFileError(
            f"{source} is no archive of a bundle: {str(error).splitlines()[0].rstrip(':')}",
            hint="make one with: tar -czf NAME.tar.gz -C FOLDER .",
        ) from error
    manifests = [target / MANIFEST, *sorted(target.glob(f"*/{MANIFEST}"))]
    folders = [manifest.parent for manifest in manifests if manifest.is_file()]
    if len(folders) != 1:
        raise InvalidFileError(
            f"{source} holds {len(folders)} bundles", hint="an archive holds one folder with its files"
        )
    return folders[0]
