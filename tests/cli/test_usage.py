"""What is typed wrong gets one line, the next step, and the right exit code; with --json one document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from merino_edge.cli.deploy import _say_next

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_command(tmp_path: Path) -> Run:
    """Run `merino-edge` as a user would, in a home of its own."""

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "XDG_DATA_HOME": str(tmp_path / "data"),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "MERINO_EDGE_RUNS": str(tmp_path / "runs"),
            **env,
        }
        command = [sys.executable, "-m", "merino_edge.cli", *args]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=60
        )

    return run


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("serch",), 2, "did you mean 'search'"),
        (("search", "--latency", "50"), 2, "no unit"),
        (("search", "--latency", "0ms"), 2, "greater than zero"),
        (("search", "--latency", "-5ms"), 2, "greater than zero"),
        (("search", "--latency", "50lightyears"), 2, "unknown unit"),
        (("search", "--memory", "20..10MB"), 2, "empty"),
        (("search", "--device", "nowhere", "--latency", "50ms"), 2, "unknown device 'nowhere'"),
        (("search", "--space", "nospace"), 2, "nospace"),
        (("search", "--no-such-option"), 2, "no-such-option"),
        (("search", "--run", "../up"), 2, "no name for a run"),
        (("profile", "nowhere"), 2, "unknown device"),
        (("profile", "pi4"), 4, "pi4"),
        (("train",), 2, "there is no run"),
        (("export", "norun"), 2, "norun"),
        (("deploy",), 2, "there is no run"),
        (("deploy", "--rollback", "--standalone"), 2, "--standalone goes with a deployment"),
        (("deploy", "some-run", "--rollback"), 2, "a device knows its own releases: leave out some-run"),
        (("deploy", "some-run", "--list"), 2, "a device knows its own releases: leave out some-run"),
        (("generate", "hello", "--temperature", "-1"), 2, "--temperature"),
        (("doctor", "nowhere"), 2, "unknown device 'nowhere'"),
        (("bench",), 2, "there is no run"),
        (("search", "--format", "foo", "--parameters", "9M"), 2, "no exporter writes 'foo'"),
        (("search", "--latency", "1ns"), 3, "at most 1.000 ns"),
        (("show", "empty"), 1, "not valid JSON"),
        (("show", "folder"), 2, "the folder 'folder' is no run, checkpoint or bundle"),
        (("deploy", "--bundle", "empty"), 1, "empty is no archive of a bundle: file could not be opened successfully"),
        (("deploy", "--bundle", "folder"), 2, "no run, checkpoint or bundle"),
        (("bench", "--fail-over", "5%"), 2, "merino-edge bench --help"),
    ],
)
def test_a_wrong_call_gets_one_line_and_its_exit_code(
    run_command: Run, args: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "folder").mkdir()
    done = run_command(*args, "--json")
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)
    assert document["error"]["exit_code"] == code
    assert words in document["error"]["message"] + str(document["error"]["hint"])
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error:") for line in done.stderr.splitlines()) == 1


def test_a_half_given_option_names_the_help_of_its_command(run_command: Run) -> None:
    done = run_command("bench", "--compare", "one")
    assert (done.returncode, "next: merino-edge bench --help" in done.stderr) == (2, True)


def test_profile_of_a_board_nobody_added_names_the_command_that_adds_it(run_command: Run) -> None:
    done = run_command("profile", "pi4")
    assert done.returncode == 4
    assert "merino-edge profile pi4 --host" in done.stderr


def test_nothing_but_the_result_goes_to_stdout(run_command: Run) -> None:
    done = run_command("search", "--parameters", "20M", "--no-verify", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] <= 20_000_000


def test_no_escape_codes_where_stdout_is_no_terminal(run_command: Run) -> None:
    done = run_command("search", "--parameters", "20M", "--no-verify")
    assert "\x1b" not in done.stdout + done.stderr


def test_limits_that_nothing_meets_name_the_binding_one_and_the_nearest(run_command: Run) -> None:
    done = run_command("search", "--parameters", "1k", "--no-verify", "--json")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert error["binding"] == "parameters"
    assert error["nearest"] is not None


@pytest.mark.parametrize("words", [("show", "merino-52m"), ("show", "merino-52m", "--json"), ("--version",)])
def test_a_full_disk_behind_stdout_is_one_line(words: tuple[str, ...]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "merino_edge.cli", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write the output: No space left on device\n  next: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("device", "words"), [("local", 'generate "Once'), ("kitchen", 'generate --device kitchen "Once')]
)
def test_deploy_names_the_device_where_generate_would_mean_another(
    device: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _say_next([{"device": device, "trained": True}], rollback=False, dry_run=False)
    assert f"next: merino-edge {words}" in capsys.readouterr().err


def test_a_time_budget_is_asked_for_in_minutes_and_a_latency_in_milliseconds(run_command: Run) -> None:
    assert "write it like 5m" in run_command("train", "--time", "short").stderr
    assert "write it like 50ms" in run_command("search", "--latency", "short").stderr


@pytest.mark.parametrize("option", ["--format", "--recipe", "--form", "--quantizer"])
def test_an_export_that_does_not_exist_lists_those_that_do_once(option: str, run_command: Run) -> None:
    run_command("search", "--parameters", "6M", "--vocab", "300", "--no-verify", "--run", "small")
    done = run_command("export", "small", option, "xyz")
    assert done.returncode == 2
    told = done.stderr[done.stderr.index("error:") :]
    known = {"--format": "tflite", "--recipe": "dynamic_wi8_afp32", "--form": "unrolled", "--quantizer": "gptq"}
    assert told.count(known[option]) == 1
    assert told.index("next:") < told.index(known[option])


def test_show_writes_the_entropy_as_the_sum_that_it_is(run_command: Run) -> None:
    lines = dict(
        line.split("  ", 1) for line in run_command("show", "merino-61m").stdout.splitlines() if "nats" in line
    )
    assert lines["entropy"].strip() == "525,134 nats (beta 0.0625, alpha 1 and 1, eps 0.01)"
    outside = run_command("show", "merino-61m", "--beta", "5").stdout
    assert "0: outside the formula's domain" in outside
    assert "_" not in "".join(line.split("  ")[0] for line in outside.splitlines() if not line.startswith("file "))


def test_an_unknown_task_is_refused_before_anything_is_loaded(run_command: Run) -> None:
    pytest.importorskip("lm_eval", reason="not installed: lm_eval (pip install 'merino-edge[eval]')")
    done = run_command("evaluate", "--tasks", "arc_eazy")  # there is no run either
    assert (done.returncode, "there is no task 'arc_eazy'; did you mean 'arc_easy'?" in done.stderr) == (2, True)


def test_the_command_alone_shows_its_help(run_command: Run) -> None:
    done = run_command()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: merino-edge")


def test_more_threads_than_cores_are_refused_before_anything_is_measured(run_command: Run) -> None:
    run_command("search", "--parameters", "6M", "--vocab", "300", "--context", "256", "--no-verify", "--run", "small")
    done = run_command("bench", "small", "--recipe", "fp32", "--threads", "4096", "--time", "1s")
    assert done.returncode == 2
    assert "--threads 4096: local has" in done.stderr


def test_an_empty_text_to_judge_an_export_by_is_refused(tmp_path: Path) -> None:
    from merino_edge.errors import DataError
    from merino_edge.flows.quality import find_held_out

    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="holds no text"):
        find_held_out(tmp_path, 300, str(tmp_path / "empty.txt"))


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    environment = {**os.environ, "MERINO_EDGE_RUNS": str(tmp_path / "runs"), "XDG_DATA_HOME": str(tmp_path / "data")}
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "merino_edge.cli", "show", "merino-61m"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
