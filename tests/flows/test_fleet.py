"""Several devices at once, a dry run, and the list of releases."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from merino_edge.cli.main import main
from merino_edge.device.registry import DeviceEntry, Registry
from merino_edge.errors import DeployError, DeviceError
from merino_edge.flows import devices
from merino_edge.flows.conditions import Conditions
from merino_edge.flows.search import search
from merino_edge.flows.verify import SearchOptions
from merino_edge.testing import FakeDevice, write_tiny_space

Command = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeDevice]:
    made = {name: FakeDevice(name) for name in ("one", "two", "three")}
    for name in made:
        Registry().add(DeviceEntry(name, f"pi@{name}", "pi4", None, "paramiko"))

    def open_device(entry: DeviceEntry, ask: Any = None) -> FakeDevice:
        if entry.name not in made:
            raise DeviceError(f"cannot reach {entry.name}", hint="is it on?")
        return made[entry.name]

    monkeypatch.setattr(devices, "open_device", open_device)
    return made


@pytest.fixture
def command(fakes: dict[str, FakeDevice], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    conditions = Conditions(vocab_size=256, context_length=256)
    search(SearchOptions(conditions=conditions, space=str(write_tiny_space(tmp_path)), verify=False))
    capsys.readouterr()

    def run(*words: str) -> tuple[int, dict[str, Any], str]:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--json"])
        said = capsys.readouterr()
        return int(str(ended.value.code)), json.loads(said.out), said.err

    return run


def full_disk(monkeypatch: pytest.MonkeyPatch, fake: FakeDevice) -> None:
    hint = "free some space on the device, for example with: merino-edge deploy --keep 1"

    def refuse(*words: Any) -> Any:
        raise DeployError("9.9 MB are to be written, 0.1 MB are free on the device", hint=hint)

    monkeypatch.setattr(fake, "install", refuse)


def test_on_a_full_disk_keep_is_not_advised_to_who_has_just_tried_it(
    command: Command, fakes: dict[str, FakeDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, fakes["one"])
    hints = [command("deploy", "-d", "one", *words)[1]["error"]["hint"] for words in ((), ("--keep", "2"))]
    assert all("--keep 1" in hint for hint in hints)
    code, document, _ = command("deploy", "-d", "one", "--keep", "1")
    assert code == 1
    assert "--keep" not in document["error"]["hint"]
    assert "delete other files on one, or send a smaller file" in document["error"]["hint"]
    monkeypatch.undo()


@pytest.mark.parametrize(("recipe", "format_name"), [("int4", "onnx"), ("dynamic_wi4_b32_afp32", "tflite")])
def test_a_recipe_that_the_board_does_not_prefer_needs_its_format_named(
    command: Command, recipe: str, format_name: str
) -> None:
    code, document, _ = command("deploy", "-d", "one", "--recipe", recipe)
    assert code == 2
    assert document["error"]["hint"] == f"name the format too: --format {format_name} --recipe {recipe}"


def check(document: dict[str, Any], name: str) -> None:
    text = resources.files("merino_edge.cli").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")
    jsonschema.validate(document, json.loads(text))


RECIPE = ("--format", "onnx", "--recipe", "fp32")


def test_two_devices_get_the_same_release(command: Command, fakes: dict[str, FakeDevice]) -> None:
    code, document, _ = command("deploy", "--device", "one", "--device", "two", *RECIPE)
    assert (code, document["failed"]) == (0, [])
    assert [d["device"] for d in document["deployments"]] == ["one", "two"]
    assert len({d["sha256"] for d in document["deployments"]}) == 1
    assert fakes["three"].current() is None
    check(document, "deployments")


def test_all_devices_and_one_that_is_gone_end_with_six(command: Command, fakes: dict[str, FakeDevice]) -> None:
    del fakes["two"]
    code, document, said = command("deploy", "--all", *RECIPE)
    assert code == document["error"]["exit_code"] == 6
    assert [d["device"] for d in document["deployments"]] == ["one", "three"]
    assert [(f["device"], f["kind"]) for f in document["failed"]] == [("two", "device")]
    assert "next: 2 of 3 are done; again for the others: merino-edge deploy --device two" in said


def test_all_gone_ends_as_one_would(command: Command, fakes: dict[str, FakeDevice]) -> None:
    fakes.clear()
    code, document, _ = command("deploy", "--all", *RECIPE)
    assert (code, len(document["failed"])) == (4, 3)


def test_an_unknown_name_begins_nothing(command: Command, fakes: dict[str, FakeDevice]) -> None:
    code, document, _ = command("deploy", "-d", "one", "-d", "tow", *RECIPE)
    assert code == 2
    assert "did you mean 'two'" in document["error"]["message"]
    assert fakes["one"].current() is None


def test_a_dry_run_says_what_would_be_done_and_does_nothing(command: Command, fakes: dict[str, FakeDevice]) -> None:
    code, document, _ = command("deploy", "-d", "one", *RECIPE, "--dry-run")
    assert (code, document["release"], document["export_first"]) == (0, 1, True)
    assert fakes["one"].current() is None
    command("deploy", "-d", "one", *RECIPE)
    code, document, _ = command("deploy", "-d", "two", *RECIPE, "--dry-run", "--keep", "1")
    assert (document["export_first"], document["bytes_sent"]) == (False, document["bytes_total"])  # manifest and all
    code, document, _ = command("deploy", "-d", "one", *RECIPE, "--dry-run", "--keep", "1")
    assert (document["release"], document["previous"], document["bytes_sent"]) == (2, 1, 0)
    check(document, "deploy")


def test_releases_are_listed_and_a_rollback_is_foretold(command: Command) -> None:
    for _ in range(2):
        command("deploy", "-d", "one", *RECIPE)
    code, document, _ = command("deploy", "-d", "one", "--list")
    assert (code, document["current"]) == (0, 2)
    check(document, "releases")
    assert [(r["release"], r["current"], r["recipe"]) for r in document["releases"]] == [
        (1, False, "fp32"),
        (2, True, "fp32"),
    ]
    assert command("deploy", "-d", "one", "--rollback", "--dry-run")[1]["release"] == 1
    assert command("deploy", "-d", "one", "--list")[1]["current"] == 2
    assert command("deploy", "-d", "one", "--rollback")[1]["release"] == 1
    assert command("deploy", "-d", "one", "--rollback")[0] == 2


def test_words_that_contradict_each_other_are_refused(command: Command) -> None:
    assert command("deploy", "--all", "-d", "one")[0] == 2
    assert command("deploy", "--list", "--dry-run")[0] == 2
