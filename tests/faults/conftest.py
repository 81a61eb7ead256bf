"""Where campaigns work, and how every run ends: with the records of its campaigns, one line of JSON each."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import campaign
import pytest


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory where there is one: thousands of fsyncs would wear a disk and prove nothing more."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="merino-edge-", dir=memory))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the records."""
    if campaign.RECORDS:
        terminalreporter.section("fault campaigns")
        for line in campaign.RECORDS:
            terminalreporter.write_line(line)
