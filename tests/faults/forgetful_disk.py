"""A mounted `forgetful.py`, and work done on it in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DETACH = 2


def reason_not_to() -> str | None:
    """Return why no file system can be mounted here, None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "mounting a FUSE file system takes Linux and root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse here"
    with tempfile.TemporaryDirectory() as folder:
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        refused = ctypes.CDLL(None).mount(b"try", folder.encode(), b"fuse", 6, options)
        if not refused:
            ctypes.CDLL(None).umount2(folder.encode(), DETACH)
        os.close(device)
    return "this container lets nobody mount a file system" if refused else None


needs_fuse = pytest.mark.skipif(reason_not_to() is not None, reason=str(reason_not_to()))


class ForgetfulDisk:
    """One mounted file system, see `forgetful.py`."""

    def __init__(self, mount: Path) -> None:
        mount.mkdir()
        self.mount = mount
        program = str(Path(__file__).with_name("forgetful.py"))
        self._server = subprocess.Popen(
            [sys.executable, "-S", program, str(mount)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.order("count")

    def order(self, what: str, **words: object) -> dict[str, Any]:
        """Give an order; return the answer."""
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps({"do": what, **words}) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer

    def close(self) -> None:
        """Unmount and end."""
        ctypes.CDLL(None).umount2(str(self.mount).encode(), DETACH)
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.wait(10)
        self._server.stdout.close()


@contextmanager
def forgetful_disk(mount: Path) -> Iterator[ForgetfulDisk]:
    """Mount one and unmount it again whatever happens."""
    disk = ForgetfulDisk(mount)
    try:
        yield disk
    finally:
        disk.close()


def in_a_process(work: Callable[[], object]) -> str | None:
    """Run work in a child; return None where it ended well, else the name of what it raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  the child must not become a second pytest
            os.write(writer, type(error).__name__.encode() + b": " + str(error).encode()[:300])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(child, 0)
    return said or None
