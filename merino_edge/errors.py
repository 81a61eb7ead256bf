"""Every error that merino-edge raises on purpose, in one tree.

Each class fixes the ``kind`` that ``--json`` prints and the exit code of the command::

    MerinoEdgeError                 1  failed
    ├── UsageError                  2  the words of the call are wrong (a unit, an option, a name)
    ├── InvalidFileError            1  a file is unreadable, corrupt, or holds an unknown key
    ├── DataError                   1  text or tokens that cannot be used for training or evaluation
    ├── TrainingError               1  a training that cannot begin or go on
    ├── ExportError                 1  a bundle could not be written, or failed its parity check
    ├── DeployError                 1  a release could not be installed; the former one still serves
    ├── InfeasibleError             3  no architecture meets the limits
    ├── DeviceError                 4  the device cannot be reached, or refused
    │   ├── ProtocolError           4  the agent's byte stream is damaged or ended early
    │   └── DeviceBusyError         4  another measurement or installation holds the device's lock
    ├── MeasurementError            5  a measurement is not valid (throttled, disturbed, too short)
    ├── PartialFailureError         6  some devices or rows failed, others are done
    ├── RegressionError             7  slower or larger than the baseline allows
    ├── InternalError               1  a mistake of ours
    └── InterruptedByUser         130  Ctrl-C
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class MerinoEdgeError(Exception):
    """Base of all errors a user may meet: what went wrong, where, and what to type next."""

    exit_code = 1
    kind = "failed"
    usual_hint: str | None = None

    def __init__(self, message: str, hint: str | None = None, **details: Any) -> None:
        """Keep the sentence, the next step, and whatever ``--json`` should carry besides.

        Args:
            message: One line: what is wrong and where.
            hint: One line: what to do now, usually a command.
            details: JSON-serialisable facts for machines (``binding=...``, ``nearest=...``).
        """
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint
        self.details = details

    def to_json(self) -> dict[str, Any]:
        """Return the ``error`` object of the command's JSON document."""
        return {
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
            **self.details,
        }


class UsageError(MerinoEdgeError):
    """The call itself is wrong: an option, a quantity without a unit, an unknown name."""

    exit_code = 2
    kind = "usage"


class InvalidFileError(MerinoEdgeError):
    """A file is missing, unreadable, truncated, or does not say what it must say."""

    kind = "invalid-file"


class DataError(MerinoEdgeError):
    """Text or tokens cannot be used: empty, not UTF-8, shorter than one context."""

    kind = "data"


class TrainingError(MerinoEdgeError):
    """Training cannot begin or go on."""

    kind = "training"


class ExportError(MerinoEdgeError):
    """A bundle could not be written or does not compute what the architecture says."""

    kind = "export"


class DeployError(MerinoEdgeError):
    """A release could not be installed; what was deployed before still serves."""

    kind = "deploy"


class InfeasibleError(MerinoEdgeError):
    """No architecture of the space meets all limits."""

    exit_code = 3
    kind = "infeasible"


class DeviceError(MerinoEdgeError):
    """The device cannot be reached, or refused (host key, login, lock)."""

    exit_code = 4
    kind = "device"


class ProtocolError(DeviceError):
    """The agent's byte stream is damaged, oversized, or ended without its end frame."""

    kind = "protocol"
    usual_hint = "run the same command again; if it stays: merino-edge devices remove NAME --purge, and add it anew"


class DeviceBusyError(DeviceError):
    """Somebody else holds the device's lock."""

    kind = "device-busy"


class MeasurementError(MerinoEdgeError):
    """A measurement is not valid and must not be used."""

    exit_code = 5
    kind = "measurement"


class PartialFailureError(MerinoEdgeError):
    """Some rows or devices failed; the results of the others are kept."""

    exit_code = 6
    kind = "partial"


class RegressionError(MerinoEdgeError):
    """A measured value is worse than the baseline allows."""

    exit_code = 7
    kind = "regression"


class InternalError(MerinoEdgeError):
    """Something that should not be possible: a mistake in merino-edge."""

    kind = "internal"


class InterruptedByUser(MerinoEdgeError):
    """Ctrl-C; whatever was complete is kept, nothing is half-written."""

    exit_code = 130
    kind = "interrupted"


@contextmanager
def next_step(hint: str) -> Iterator[None]:
    """Give an `InvalidFileError` that has no next step this one."""
    try:
        yield
    except InvalidFileError as error:
        error.hint = error.hint or hint
        raise


def did_you_mean(word: str, known: Iterable[str], listed: bool = False) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or the list of allowed ones.

    Args:
        word: What was written.
        known: What is allowed.
        listed: The hint lists them already.
    """
    choices = sorted(known)
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(choices)}" if choices and not listed else ""


def writing_hint(error: OSError, elsewhere: str = "choose another folder") -> str:
    """Return what helps where a file could not be written: space helps only a full disk.

    Args:
        error: What the system said.
        elsewhere: How to write somewhere else.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"free some space or {elsewhere}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{elsewhere}, one that you may write to"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"{elsewhere}: something else has that name"
    return elsewhere


def check_keys(found: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise `InvalidFileError` for the first key that is not known, offering the nearest."""
    allowed = set(known)
    for key in found:
        if key not in allowed:
            raise InvalidFileError(f"{where}: unknown key '{key}'{did_you_mean(key, allowed)}")
