"""The error tree: exit codes as the design lists them, messages that offer the nearest word."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from merino_edge import errors
from merino_edge.errors import (
    InfeasibleError,
    InvalidFileError,
    MerinoEdgeError,
    check_keys,
    did_you_mean,
    writing_hint,
)
from merino_edge.files import write_json

EXIT_CODES = {
    "MerinoEdgeError": 1,
    "UsageError": 2,
    "InvalidFileError": 1,
    "DataError": 1,
    "TrainingError": 1,
    "ExportError": 1,
    "DeployError": 1,
    "InfeasibleError": 3,
    "DeviceError": 4,
    "ProtocolError": 4,
    "DeviceBusyError": 4,
    "MeasurementError": 5,
    "PartialFailureError": 6,
    "RegressionError": 7,
    "InterruptedByUser": 130,
}
CLASSES = {name: value for name, value in vars(errors).items() if isinstance(value, type) and name in EXIT_CODES}


def test_every_error_has_the_exit_code_of_the_design() -> None:
    assert {name: cls.exit_code for name, cls in CLASSES.items()} == EXIT_CODES


def test_every_error_stands_in_the_drawn_tree() -> None:
    drawn = [line for line in (errors.__doc__ or "").splitlines() if "Error" in line or "Interrupted" in line]
    for name, code in EXIT_CODES.items():
        assert any(name in line.split() and str(code) in line.split() for line in drawn), name


def test_kinds_tell_errors_apart() -> None:
    kinds = [cls.kind for cls in CLASSES.values()]
    assert len(set(kinds)) == len(kinds)


def test_the_json_object_carries_message_hint_code_and_details() -> None:
    error = InfeasibleError("nothing fits", hint="allow 7ms", binding="latency_ms", least=6.5)
    assert error.to_json() == {
        "kind": "infeasible",
        "message": "nothing fits",
        "hint": "allow 7ms",
        "exit_code": 3,
        "binding": "latency_ms",
        "least": 6.5,
    }


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space or choose another folder"),
        (errno.EACCES, "choose another folder, one that you may write to"),
        (errno.EROFS, "choose another folder, one that you may write to"),
        (errno.ENOTDIR, "choose another folder: something else has that name"),
        (errno.EIO, "choose another folder"),
    ],
)
def test_space_is_asked_for_only_where_it_would_help(number: int, words: str) -> None:
    assert writing_hint(OSError(number, "so it is")) == words


def test_a_file_where_a_folder_should_be_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MerinoEdgeError, match="cannot write") as caught:
        write_json(tmp_path / "file" / "facts.json", {})
    assert caught.value.hint == "choose another folder: something else has that name"


def test_names_that_the_hint_lists_are_not_listed_twice() -> None:
    assert did_you_mean("q", ["aaa", "bbb"]) == "; known: aaa, bbb"
    assert did_you_mean("q", ["aaa", "bbb"], listed=True) == ""
    assert did_you_mean("aab", ["aaa", "bbb"], listed=True) == "; did you mean 'aaa'?"


def test_all_errors_are_caught_as_one() -> None:
    assert all(issubclass(cls, MerinoEdgeError) for cls in CLASSES.values())


def test_an_unknown_key_offers_the_nearest() -> None:
    with pytest.raises(InvalidFileError, match=r"^pi5\.toml: unknown key 'ram_gb'; did you mean 'ram_bytes'\?$"):
        check_keys(["ram_gb"], ["ram_bytes", "cores"], "pi5.toml")


def test_a_word_near_nothing_gets_the_whole_list() -> None:
    assert did_you_mean("zzz", ["onnx", "tflite"]) == "; known: onnx, tflite"
    assert did_you_mean("zzz", []) == ""
