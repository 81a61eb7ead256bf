"""The registry: what is added is found again, and what is damaged is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from merino_edge.device.registry import (
    DeviceEntry,
    HostAddress,
    Registry,
    choose_device,
    device_folder,
    parse_host,
)
from merino_edge.errors import DeviceError, InvalidFileError, UsageError
from merino_edge.settings import config_file

KITCHEN = DeviceEntry("kitchen", host="pi@kitchen.local", board="pi4", root=None, transport="paramiko")


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MERINO_EDGE_DEVICE", raising=False)


def write_config(text: str) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text(text)


def test_local_always_exists() -> None:
    entry = Registry().get("local")
    assert (entry.board, entry.transport, entry.host) == ("local", "local", None)
    assert Registry().names() == ["local"]


def test_an_added_device_reads_back() -> None:
    entry = DeviceEntry("lab-3", host="me@[2001:db8::1]:2222", board="pi5", root='/mnt/"a b"\\c', transport="openssh")
    Registry().add(KITCHEN)
    Registry().add(entry)
    assert Registry().get("kitchen") == KITCHEN
    assert Registry().all()[1:] == [KITCHEN, entry]


def test_adding_again_replaces_the_entry_and_keeps_what_lies_beside() -> None:
    Registry().add(KITCHEN)
    (device_folder("kitchen") / "profile.json").write_text("{}")
    moved = DeviceEntry("kitchen", host="pi@192.0.2.7", board="pi4", root="/mnt/ssd", transport="paramiko")
    Registry().add(moved)
    assert Registry().get("kitchen") == moved
    assert sorted(os.listdir(device_folder("kitchen"))) == ["device.toml", "profile.json"]


def test_removing_keeps_measurements_unless_purged() -> None:
    Registry().add(KITCHEN)
    (device_folder("kitchen") / "measurements.jsonl").write_text("")
    Registry().remove("kitchen")
    assert Registry().names() == ["local"]
    assert (device_folder("kitchen") / "measurements.jsonl").exists()
    Registry().add(KITCHEN)
    Registry().remove("kitchen", purge=True)
    assert not device_folder("kitchen").exists()


def test_an_unknown_device_is_a_usage_error_that_lists_what_there_is() -> None:
    Registry().add(KITCHEN)
    with pytest.raises(UsageError, match="did you mean 'kitchen'") as caught:
        Registry().get("kichen")
    assert caught.value.exit_code == 2
    assert "kitchen" in (caught.value.hint or "")
    assert "jetson-nano" in (caught.value.hint or "")


def test_a_board_without_a_device_gets_the_command_that_adds_one() -> None:
    with pytest.raises(DeviceError) as caught:
        Registry().get("pi4")
    assert caught.value.exit_code == 4
    assert caught.value.hint == "merino-edge profile pi4 --host pi@ADDRESS"


def test_a_device_may_be_named_like_its_board() -> None:
    entry = DeviceEntry("pi4", host="pi@192.0.2.7", board="pi4", root=None, transport="paramiko")
    Registry().add(entry)
    assert Registry().get("pi4") == entry


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "A", "a b", "x" * 65, "caf\u00e9", "a\n", "\u0661"])
def test_a_name_that_is_no_plain_folder_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        DeviceEntry(name, host="pi@h", board="pi4", root=None, transport="paramiko")
    with pytest.raises(UsageError):
        Registry().get(name)


@pytest.mark.parametrize("name", ["local"])
def test_local_can_neither_be_added_nor_removed(name: str) -> None:
    with pytest.raises(UsageError):
        Registry().add(DeviceEntry(name, host="pi@h", board="pi4", root=None, transport="paramiko"))
    with pytest.raises(UsageError):
        Registry().remove(name)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("kitchen", HostAddress("kitchen")),
        ("pi@kitchen.local", HostAddress("kitchen.local", "pi")),
        ("pi@192.0.2.7:2222", HostAddress("192.0.2.7", "pi", 2222)),
        ("ssh://pi@kitchen:22", HostAddress("kitchen", "pi", 22)),
        ("pi@[2001:db8::1]:2222", HostAddress("2001:db8::1", "pi", 2222)),
        ("2001:db8::1", HostAddress("2001:db8::1")),
        ("a@b@host", HostAddress("host", "a@b")),
    ],
)
def test_a_host_is_taken_apart(text: str, address: HostAddress) -> None:
    assert parse_host(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "@h", "-oProxyCommand=x", "pi@-h", "-x@h", "h:0", "h:65536", "h:x", "a b", "h;id", "[::1", "h\n", "pi@"],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_host(text)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('hots = "pi@h"', "did you mean 'host'"),
        ("host = 3", "host must be a text"),
        ('host = "-oX"', "no host"),
        ('board = "pi44"', "did you mean 'pi4'"),
        ('transport = "telnet"', "no transport"),
        ("schema_version = 2", "schema_version"),
        ("= 3", "not valid TOML"),
        ("\udcff", "UTF-8"),
    ],
)
def test_a_damaged_file_is_named_and_does_not_hide_the_others(line: str, word: str) -> None:
    Registry().add(KITCHEN)
    Registry().add(DeviceEntry("attic", host="pi@h", board="pi3", root=None, transport="paramiko"))
    path = device_folder("kitchen") / "device.toml"
    key = line.split("=")[0]
    kept = [old for old in path.read_text().splitlines() if not old.startswith(key)]
    path.write_bytes("\n".join([*kept, line]).encode(errors="surrogateescape"))
    with pytest.raises(InvalidFileError, match=r"device\.toml") as caught:
        Registry().get("kitchen")
    assert word in caught.value.message
    assert Registry().get("attic").board == "pi3"


def test_the_choice_of_a_device_names_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device(None, None)[0] == "local"
    write_config('device = "kitchen"\n')
    assert choose_device(None, None) == ("kitchen", str(config_file()))
    monkeypatch.setenv("MERINO_EDGE_DEVICE", "attic")
    assert choose_device(None, None) == ("attic", "$MERINO_EDGE_DEVICE")
    assert choose_device(None, "cellar")[0] == "cellar"
    assert choose_device("roof", "cellar") == ("roof", "--device")


@pytest.mark.parametrize("text", ["devise = 'x'", "device = 3", "device = ''", "device ="])
def test_a_damaged_configuration_is_named(text: str) -> None:
    write_config(text)
    with pytest.raises(InvalidFileError, match=r"config\.toml"):
        choose_device(None, None)
