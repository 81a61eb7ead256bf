"""Emulated boards for tests: each core of `BOARD_CPUS` in turn; `tools/board/side_by_side.py` runs one pytest for each.

`BOARD_FIRST` and `BOARD_LAST` name the cores that do what is the same on all of them (by default of `BOARD_CPUS`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import emulator
import pytest
from board_desk import Desk

CPUS = os.environ.get("BOARD_CPUS", "").split()
FIRST = os.environ.get("BOARD_FIRST") or (CPUS or [""])[0]
LAST = os.environ.get("BOARD_LAST") or (CPUS or [""])[-1]


@pytest.fixture(scope="session", params=CPUS or ["none"])
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Boot a board of each core, its temporary folder full and no network behind it; it is ended whatever happens."""
    if not CPUS:
        pytest.skip("emulated boards take minutes: make test-board")
    cpu = request.param
    name = f"emulated-{cpu.removeprefix('cortex-')}"
    try:
        board = emulator.up(name, cpu)
    except emulator.BoardError as error:
        pytest.fail(f"no emulated board: {error}")
    try:
        board.ssh("dd if=/dev/zero of=/tmp/full bs=1M 2> /dev/null; test $(df --output=avail /tmp | tail -1) = 0")
        desk = Desk(board, tmp_path_factory.mktemp(name), {}, repeats=cpu == FIRST, standalone=cpu == LAST)
        if desk.has_a_runtime_that_dies:
            desk.install_a_runtime_that_dies()
        yield desk
    finally:
        emulator.down(name)


@pytest.fixture(scope="session")
def added(desk: Desk) -> dict[str, Any]:
    return desk.type("devices", "add", desk.name, "--host", desk.board.address, "--profile", "pi4")
