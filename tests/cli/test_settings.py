"""Flag > environment > file > default, and whatever is wrong in one of them is named with its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from merino_edge.cli.main import COMMANDS, cli, main
from merino_edge.cli.settings import NO_SETTINGS, apply_settings, options_of, variable_of
from merino_edge.settings import cache_home, config_file, data_home, read_settings

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folders_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let monkeypatch put back what a file of settings puts into the environment."""
    for variable in ("MERINO_EDGE_DATA", "MERINO_EDGE_DEVICE"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; return exit code, stdout and stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(args))
        text = capsys.readouterr()
        return int(ended.value.code or 0), text.out, text.err

    return run


def write(text: str) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text(text)


def found(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def searched(command: Command, *args: str) -> dict[str, Any]:
    code, out, err = command("search", "--device", "pi4", "--no-verify", "--json", *args)
    assert code == 0, err
    return dict(json.loads(out))


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ("--parameters", "20M")
    assert searched(command, *limits)["conditions"]["context_length"] == 1024
    write("[search]\ncontext = 512\n")
    assert searched(command, *limits)["conditions"]["context_length"] == 512
    monkeypatch.setenv("MERINO_EDGE_SEARCH_CONTEXT", "256")
    assert searched(command, *limits)["conditions"]["context_length"] == 256
    assert searched(command, *limits, "--context", "200")["conditions"]["context_length"] == 200


def test_quantities_flags_and_lists_may_stand_in_the_file(command: Command) -> None:
    write('[search]\nparameters = "15M..20M"\nverify = false\n[train]\ndata = ["a.txt", "b c.txt"]\n')
    (limit,) = searched(command)["constraints"]
    assert limit["name"] == "parameters"
    defaults = apply_settings(list(COMMANDS), found)
    assert defaults["search"]["verify"] is False
    assert defaults["train"]["data"] == ["a.txt", "b c.txt"]


def test_a_folder_of_runs_may_stand_in_the_file(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MERINO_EDGE_RUNS")
    write(f'runs = "{tmp_path}/here"\n')
    assert searched(command, "--parameters", "20M", "--run", "one")["run"] == "one"
    assert (tmp_path / "here" / "one" / "architecture.json").exists()
    assert os.environ["MERINO_EDGE_RUNS"] == f"{tmp_path}/here"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[[", "not valid TOML"),
        ("devise = 'x'", "unknown key 'devise'; did you mean 'device'?"),
        ("runs = 3", "runs must be a folder"),
        ("[serch]\nlatency = '5ms'", "unknown table [serch]; did you mean 'search'?"),
        ("[doctor]\nx = 1", "[doctor] has no settings"),
        ("[search]\nlatncy = '5ms'", "unknown key 'latncy' in [search]; did you mean 'latency'?"),
        ("[search]\nlatency = 50", "[search] latency: '50' has no unit"),
        ("[search]\nlatency = ['5ms']", "[search] latency: must be a text in quotes or a number"),
        ("[search]\nvocab = 'many'", "[search] vocab: 'many' is not a valid integer"),
        ("[search]\nverify = 'no'", "[search] verify: must be true or false"),
        ("[search]\nmode = 'fast'", "[search] mode: 'fast' is not one of"),
        ("[search]\ndevice = 'pi4'", "unknown key 'device' in [search]"),
        ("[deploy]\nrollback = true", "unknown key 'rollback' in [deploy]"),
        ("[bench]\nthreads = 0", "[bench] threads: 0 is not in the range"),
    ],
)
def test_whatever_is_wrong_in_the_file_is_named_with_the_file_whichever_command_is_called(
    command: Command, text: str, words: str
) -> None:
    write(text)
    code, out, err = command("devices", "--json")
    error = json.loads(out)["error"]
    assert code == error["exit_code"] == 1
    assert str(config_file()) in error["message"]
    assert words in error["message"]
    assert f"edit {config_file()}" in error["hint"]
    assert sum(line.startswith("error:") for line in err.splitlines()) == 1


def test_a_wrong_variable_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERINO_EDGE_SEARCH_LATENCY", "50")
    code, _, err = command("search", "--device", "pi4")
    assert code == 2
    assert "error: $MERINO_EDGE_SEARCH_LATENCY: '50' has no unit" in err
    assert "unset MERINO_EDGE_SEARCH_LATENCY" in err


def test_help_is_there_whatever_the_file_says(command: Command) -> None:
    write("[[[")
    for args in (("--help",), ("search", "--help"), ("devices", "add", "--help")):
        code, out, _ = command(*args)
        assert code == 0
        assert "Usage" in out


def test_config_says_where_each_value_comes_from(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    write('device = "pi4"\n[search]\nlatency = "50ms"\nvocab = 8192\n')
    monkeypatch.setenv("MERINO_EDGE_SEARCH_VOCAB", "300")
    monkeypatch.setenv("MERINO_EDGE_SERCH_VOCAB", "300")
    code, out, err = command("config", "--json")
    document = json.loads(out)
    settings = {s["name"]: (s["value"], s["source"], s["where"]) for s in document["settings"]}
    assert code == 0
    assert document["exists"]
    assert settings["device"] == ("pi4", "file", str(config_file()))
    assert settings["search.latency"] == ("50ms", "file", str(config_file()))
    assert settings["search.vocab"] == ("300", "environment", "$MERINO_EDGE_SEARCH_VOCAB")
    assert "search.depth" not in settings
    assert document["unknown_variables"] == ["MERINO_EDGE_SERCH_VOCAB"]
    assert "did you mean 'MERINO_EDGE_SEARCH_VOCAB'?" in err
    _, out, _ = command("config", "--all")
    assert "search.depth" in out
    assert "50ms" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_works_on_is_no_setting(name: str) -> None:
    assert not set(options_of(found(name))) & NO_SETTINGS


def test_no_two_settings_have_one_variable() -> None:
    variables = [variable_of(name, option) for name in COMMANDS for option in options_of(found(name))]
    assert len(variables) == len(set(variables))


def test_the_folders_follow_xdg_and_ignore_relative_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, function, default in (
        ("XDG_DATA_HOME", data_home, ".local/share/merino-edge"),
        ("XDG_CACHE_HOME", cache_home, ".cache/merino-edge"),
        ("XDG_CONFIG_HOME", lambda: config_file().parent, ".config/merino-edge"),
    ):
        monkeypatch.setenv(variable, str(tmp_path / "own"))
        assert function() == tmp_path / "own" / "merino-edge"
        monkeypatch.setenv(variable, "not/absolute")
        assert function() == tmp_path / default
        monkeypatch.delenv(variable)
        assert function() == tmp_path / default


def test_a_home_is_resolved_in_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write('runs = "~/models"\n')
    assert read_settings().values["runs"] == str(tmp_path / "models")
