"""How long work tells how far it is. Flows report; the command line draws; libraries stay silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One step that is going on."""

    def update(self, done: float, text: str | None = None) -> None:
        """Say how much is done, in the units of the task's total, and optionally what is being done."""


class Progress(Protocol):
    """Where a flow reports to."""

    def note(self, text: str) -> None:
        """Say one line that a person should read."""

    def task(self, text: str, total: float) -> AbstractContextManager[Task]:
        """Open a step of `total` units; it ends with the `with` block."""


class _SilentTask:
    def update(self, done: float, text: str | None = None) -> None:
        """Drop it."""


class Silent:
    """Says nothing: for libraries, tests and `--quiet`."""

    def note(self, text: str) -> None:
        """Drop it."""

    @contextmanager
    def task(self, text: str, total: float) -> Iterator[Task]:
        """Open a step that nobody watches."""
        yield _SilentTask()


SILENT = Silent()
