"""What of the emulated board's tools can be tried without booting one."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import emulator
import image
import pytest
from qmp import SOCKET, Qmp, QmpError


def test_image_is_named_by_what_it_is_made_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("image.py", "init.sh", "packages.txt", "wheels.txt"):
        (tmp_path / name).write_bytes((image.HERE / name).read_bytes())
    monkeypatch.setattr(image, "HERE", tmp_path)
    before = image.digest()
    (tmp_path / "wheels.txt").write_text("numpy-2 numpy==2.0.0\n")
    assert image.digest() != before


def test_missing_tool_is_named_with_the_next_step() -> None:
    with pytest.raises(image.BoardError, match=r"no-such-tool.*make system-packages"):
        image.check_tools(("no-such-tool", "sh"))


def test_every_runtime_of_the_image_is_pinned() -> None:
    for line in image.listed("wheels.txt"):
        name, first, *_ = line.split()
        assert "==" in first
        assert name.startswith(first.split("==")[0].split("-")[0])


@pytest.mark.parametrize("name", ["", "../up", "A", "-x", "a/b"])
def test_board_with_a_name_that_is_no_folder_is_refused(name: str) -> None:
    with pytest.raises(image.BoardError, match="no name of a board"):
        emulator.find(name)


def test_process_of_somebody_else_is_never_taken_for_a_board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(emulator, "STATE", tmp_path)
    folder = tmp_path / "run" / "old"
    folder.mkdir(parents=True)
    facts = {"name": "old", "port": 1, "cpu": "cortex-a72", "icount": False, "qemu": "7.2"}
    (folder / "board.json").write_text(json.dumps(facts))
    (folder / "pid").write_text(str(os.getpid()))  # a later process with the number of one that has ended
    assert emulator.find("old") is None
    assert not emulator.down("old")
    emulator.kill("old")


def answer(folder: Path, *lines: str) -> threading.Thread:
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder)  # as QEMU does: a socket's path may not be long
    server.bind(SOCKET)
    os.chdir(here)
    server.listen(1)

    def serve() -> None:
        connection, _ = server.accept()
        with connection, server, connection.makefile("rb") as asked:
            connection.sendall(b'{"QMP": {}}\n')
            for line in ('{"return": {}}', *lines):
                asked.readline()
                connection.sendall(line.encode() + b"\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


def test_qmp_passes_over_events_and_gives_the_answer(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    answer(deep, '{"event": "STOP"}\n{"return": {"status": "running"}}', '{"error": {"desc": "no such command"}}')
    with Qmp(deep) as qmp:
        assert qmp.ask("query-status") == {"status": "running"}
        with pytest.raises(QmpError, match="no such command"):
            qmp.ask("nonsense")
        with pytest.raises(QmpError, match=r"hung up|does not answer"):
            qmp.ask("query-status")


def test_qmp_without_a_qemu_says_who_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(QmpError, match="nobody answers"):
        Qmp(tmp_path)
