"""A release's own `run.py`: the text of `merino-edge generate` with no host, and a socket that serves it."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from talking import TEXT, write_talking_bundle

from merino_edge.agent import line_server
from merino_edge.agent.line_server import MAX_CONNECTIONS, unit_text
from merino_edge.agent.standalone import DEFAULTS
from merino_edge.bundle import Bundle
from merino_edge.device.client import open_device
from merino_edge.device.purge import purge_device
from merino_edge.device.registry import DeviceEntry, local_entry
from merino_edge.device.transport import LocalTransport
from merino_edge.errors import DeployError
from merino_edge.exporters.to_onnx import export
from merino_edge.flows import devices
from merino_edge.flows.deploy import keep_tokenizer, text_check
from merino_edge.flows.generate import Sampling, generate
from merino_edge.testing import tiny_architecture, write_bundle

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> DeviceEntry:
    return dataclasses.replace(local_entry(), root=str(tmp_path_factory.mktemp("device") / "a root"))


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_talking_bundle(tmp_path_factory.mktemp("talking"), export)


@pytest.fixture(scope="module")
def deployed(entry: DeviceEntry, talking: Bundle) -> Path:
    """Deploy; return the `run.py` of the release in use."""
    with open_device(entry) as device:
        run_py = device.install(talking, None, text_check(talking)).run_py
    assert run_py is not None
    return Path(run_py)


def run(run_py: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it as a user of the board does."""
    command = ["python3", str(run_py), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize(
    ("words", "sampling"),
    [
        (["--seed", "5"], {"seed": 5}),
        (["--temperature", "0", "--max-tokens", "9"], {"temperature": 0.0, "max_tokens": 9}),
        (["--top-k", "3", "--top-p", "0.7"], {"top_k": 3, "top_p": 0.7}),
        (["--stop", "a", "--stop", "e"], {"stop": ("a", "e")}),
        (["--max-tokens", "100000", "--temperature", "3"], {"max_tokens": 100_000, "temperature": 3.0}),
    ],
    ids=["seed", "greedy", "top", "stop", "to the context's end"],
)
def test_same_seed_gives_the_text_of_generate(
    deployed: Path,
    entry: DeviceEntry,
    talking: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    sampling: dict[str, Any],
) -> None:
    monkeypatch.setattr(devices, "open_device", lambda _, ask=None: open_device(entry))
    keep_tokenizer("local", talking)
    pieces: list[str] = []
    document = generate(PROMPT, None, Sampling(**sampling), pieces.append)
    done = run(deployed, PROMPT, *words)
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in PROMPT + document["text"])
    assert done.stdout == (shown if document["text"] else "") + "\n"
    assert "tokens/s" in done.stderr


def test_its_defaults_are_those_of_generate() -> None:
    assert {f.name: f.default for f in dataclasses.fields(Sampling) if f.name != "stop"} == DEFAULTS


def test_it_needs_nothing_of_the_host_but_its_own_folder(deployed: Path, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "nowhere"), "HOME": str(tmp_path)}
    done = subprocess.run(
        ["python3", str(deployed), PROMPT, "--max-tokens", "3"],
        env=environment,
        cwd="/",
        capture_output=True,
        timeout=60,
    )
    assert done.stdout.startswith(PROMPT.encode())
    assert list(tmp_path.iterdir()) == []


def test_an_old_python_can_hand_over() -> None:
    source = resources.files("merino_edge.agent").joinpath("run.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert "__future__" not in source  # annotations are not in Python 3.6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "a PROMPT is needed"),
        (("x", "--temperature", "-1"), 2, "temperature must lie between"),
        (("x", "--max-tokens", "0"), 2, "max_tokens must be at least 1"),
        (("x", "--seed", "much"), 2, "invalid int value"),
        ((TEXT,), 2, "the context holds 512"),
        (("x", "--socket", "/nowhere/s"), 1, "nobody serves on /nowhere/s"),
        (("--socket", "/nowhere/s"), 2, "cannot listen on /nowhere/s"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(deployed: Path, words: tuple[str, ...], code: int, message: str) -> None:
    done = run(deployed, *words, code=code)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_full_disk_behind_its_text_is_one_clear_line(deployed: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = ["python3", str(deployed), PROMPT, "--max-tokens", "2"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("run.py: cannot write the output: No space left on device\n  next: ")
    assert "Traceback" not in done.stderr


def test_without_a_tokenizer_it_names_the_command(entry: DeviceEntry, talking: Bundle, tmp_path: Path) -> None:
    with open_device(dataclasses.replace(entry, root=str(tmp_path / "root"))) as device:
        assert device.install(talking).run_py is None
    for words in ((PROMPT,), ("--systemd",), ("--socket", str(tmp_path / "s"))):
        done = run(tmp_path / "root/current/run.py", *words, code=1)
        assert "merino-edge deploy --standalone" in done.stderr
        assert done.stdout == ""


def test_random_weights_are_not_asked_for_text(entry: DeviceEntry, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", export, tiny_architecture())
    with open_device(dataclasses.replace(entry, root=str(tmp_path / "root"))) as device:
        device.install(bundle)
    assert "random" in run(tmp_path / "root/current/run.py", PROMPT, code=1).stderr


def test_what_the_release_was_checked_with_and_is_gone_is_named(deployed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(deployed.parent.parent, root, symlinks=True)
    (agent,) = root.glob("agent-*.pyz")
    agent.unlink()
    assert agent.name in run(root / "current/run.py", PROMPT, code=1).stderr
    for record in (root / "runtimes").glob("host-onnx*.json"):
        record.unlink()
    assert "not whole" in run(root / "current/run.py", PROMPT, code=1).stderr


def test_while_somebody_works_on_the_device_it_says_who(deployed: Path, entry: DeviceEntry) -> None:
    from merino_edge.agent.store import Store

    with Store(Path(str(entry.root))).lock("measure"):
        done = run(deployed, PROMPT, code=4)
    assert f"process {os.getpid()} works on the device (measure)" in done.stderr


def test_a_tokenizer_that_cuts_text_otherwise_is_refused_and_the_old_release_serves(
    deployed: Path, entry: DeviceEntry, talking: Bundle
) -> None:
    good = text_check(talking)
    assert good is not None
    before = os.readlink(deployed.parent)
    with open_device(entry) as device, pytest.raises(DeployError, match="into other tokens"):
        device.install(talking, None, dataclasses.replace(good, token_ids=(*good.token_ids, 1)))
    assert os.readlink(deployed.parent) == before


def test_collection_keeps_what_the_kept_release_runs_with(talking: Bundle, entry: DeviceEntry, tmp_path: Path) -> None:
    other = write_talking_bundle(tmp_path / "int8", export, "dynamic_wi8_afp32")
    with open_device(dataclasses.replace(entry, root=str(tmp_path / "root"))) as device:
        first = device.install(talking, None, text_check(talking)).release
        device.install(other, None, text_check(other))
        device.activate(first)
        device.install(other, None, text_check(other))
        device.activate(first)
        device.collect(keep=1)
        assert [r["release"] for r in device.releases()] == [first, 3]
    run(tmp_path / "root/current/run.py", PROMPT, "--max-tokens", "2")
    run(tmp_path / "root/releases/3/run.py", PROMPT, "--max-tokens", "2")


def test_a_damaged_run_py_is_not_rolled_back_to(talking: Bundle, entry: DeviceEntry, tmp_path: Path) -> None:
    with open_device(dataclasses.replace(entry, root=str(tmp_path / "root"))) as device:
        first = device.install(talking, None, text_check(talking)).release
        device.install(talking, None, text_check(talking))
        (tmp_path / f"root/releases/{first}/run.py").write_text("print('hello')\n")
        with pytest.raises(DeployError, match=r"run\.py of release 1 was damaged"):
            device.activate(first)


def test_weights_damaged_since_they_were_deployed_are_told(deployed: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(deployed.parent.parent, root, symlinks=True)
    weights = next((root / "current").glob("model.*data"))
    with weights.open("r+b") as stream:
        stream.seek(weights.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    done = run(root / "current/run.py", PROMPT, code=1)
    assert f"{weights.name} of release" in done.stderr
    assert "was damaged on the disk" in done.stderr
    assert done.stdout == ""


def test_ctrl_c_ends_it_with_130_and_no_child_stays(deployed: Path, entry: DeviceEntry) -> None:
    command = ["python3", str(deployed), PROMPT, "--max-tokens", "200", "--temperature", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout and child.stderr
        child.stdout.read(1)
        os.killpg(child.pid, signal.SIGINT)
        error = child.stderr.read().decode()
        if child.wait(timeout=20) == 0:
            pytest.skip("it was done before the signal came")
        assert child.returncode == 130
    assert "Traceback" not in error
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


# -- on a socket --


@contextlib.contextmanager
def serving(run_py: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Serve on a socket; end it as systemd does."""
    command = ["python3", str(run_py), "--socket", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as server:
        assert server.stderr
        assert b"serving" in server.stderr.readline()
        try:
            yield server
        finally:
            server.terminate()
            server.wait(timeout=20)


def talk(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """Send lines over one connection; return the answers up to each end."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        answers = []
        with connection.makefile("rb") as reader:
            for line in lines:
                connection.sendall(line + b"\n")
                while True:
                    answers.append(json.loads(reader.readline()))
                    if "text" not in answers[-1]:
                        break
    return answers


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "s"


def test_socket_is_private_answers_again_and_again_and_is_gone_at_the_end(deployed: Path, place: Path) -> None:
    with serving(deployed, place) as server:
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        asked = json.dumps({"prompt": PROMPT, "max_tokens": 5, "seed": 2}).encode()
        answers = talk(place, asked, asked)
        half = len(answers) // 2
        texts = ["".join(a.get("text", "") for a in part) for part in (answers[:half], answers[half:])]
        assert texts[0] == texts[1]
        assert (answers[-1]["done"], answers[-1]["tokens"], answers[-1]["ended"]) == (True, 5, "length")
        direct = run(deployed, PROMPT, "--max-tokens", "5", "--seed", "2").stdout
        assert run(deployed, PROMPT, "--max-tokens", "5", "--seed", "2", "--socket", str(place)).stdout == direct
        again = run(deployed, "--socket", str(place), code=4)
        assert "somebody serves" in again.stderr
    assert server.returncode == 0
    assert not place.exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"hello", "must be one JSON object"),
        (b"[1]", 'with a text \\"prompt\\"'),
        (b'{"prompt": 1}', 'with a text \\"prompt\\"'),
        (b'{"prompt": "a", "tokens": 3}', "unknown key 'tokens'"),
        (b'{"prompt": "a", "top_p": 2}', "top_p above 0"),
        (b'{"prompt": "\\ud800"}', "not valid UTF-8"),
        (b'{"prompt": "a", "seed": true}', "seed cannot be True"),
        (b'{"prompt": "a", "stop": [1]}', "stop must be a text"),
        (b"[" * 100_000, "must be one JSON object"),
    ],
)
def test_nonsense_on_the_socket_is_answered_and_the_next_request_served(
    serving_one: Path, line: bytes, words: str
) -> None:
    answers = talk(serving_one, line, b'{"prompt": "a", "max_tokens": 1}')
    assert words in json.dumps(answers[0])
    assert answers[-1]["done"]


@pytest.fixture(scope="module")
def serving_one(deployed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("s") / "s"
    with serving(deployed, path):
        yield path


def test_clients_that_go_away_or_stay_silent_take_nothing_from_the_next(serving_one: Path) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS - 1):
            silent = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
            silent.connect(str(serving_one))
        gone = socket.socket(socket.AF_UNIX)
        gone.connect(str(serving_one))
        gone.sendall(b'{"prompt": "a", "max_tokens": 200, "temperature": 9}\n')
        gone.close()
        deadline = time.monotonic() + 20
        while True:
            try:
                answers = talk(serving_one, b'{"prompt": "a", "max_tokens": 1}')
            except (OSError, ValueError):
                answers = [{"error": "8 connections are open already"}]
            if answers[-1].get("done") or time.monotonic() > deadline:
                break
        assert answers[-1].get("done")


class Wordy:
    """A model that says more than a socket holds."""

    def generate(self, prompt: str, options: dict[str, Any], emit: Callable[[str], None]) -> dict[str, object]:
        for _ in range(int(prompt)):
            emit("x" * 100_000)
        return {"tokens": int(prompt)}


@pytest.mark.alone
def test_a_client_that_does_not_read_is_given_up_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_server, "SEND_S", 0.5)
    server = line_server.Server(Wordy())  # type: ignore[arg-type]
    (deaf, other), threads = (socket.socketpair() for _ in range(2)), []
    for (ours, theirs), words in ((deaf, b"200"), (other, b"1")):
        ours.sendall(b'{"prompt": "' + words + b'"}\n')
        threads.append(threading.Thread(target=server._read, args=(theirs,), daemon=True))
        theirs.settimeout(30)
        server._places.acquire()
        threads[-1].start()
        deadline = time.monotonic() + 30
        while server._asked.qsize() < len(threads) and time.monotonic() < deadline:
            time.sleep(0.001)  # the deaf one first, whatever the scheduler does
    started = time.monotonic()
    assert server.answer_next(10)
    assert 0.4 < time.monotonic() - started < 20
    threads[0].join(timeout=10)
    assert not threads[0].is_alive()
    with other[0].makefile("rb") as lines:
        reader = threading.Thread(target=server.answer_next, args=(10,), daemon=True)
        reader.start()
        assert "text" in json.loads(lines.readline())
        assert json.loads(lines.readline())["done"]
    reader.join()


def test_a_stale_socket_is_replaced_and_a_file_is_not(deployed: Path, place: Path) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(place))
    with serving(deployed, place):
        assert talk(place, b'{"prompt": "a", "max_tokens": 1}')[-1]["done"]
    place.write_text("mine")
    assert "no socket" in run(deployed, "--socket", str(place), code=2).stderr
    assert place.read_text() == "mine"


def test_server_follows_a_new_deployment(entry: DeviceEntry, talking: Bundle, tmp_path: Path, place: Path) -> None:
    own = dataclasses.replace(entry, root=str(tmp_path / "root"))
    with open_device(own) as device:
        device.install(talking, None, text_check(talking))
    with serving(tmp_path / "root/current/run.py", place) as server:
        with open_device(own) as device:
            device.install(talking, None, text_check(talking))
        assert server.stderr
        assert b"another release" in server.stderr.readline()
        assert b"serving release 2" in server.stderr.readline()
        assert talk(place, b'{"prompt": "a", "max_tokens": 1}')[-1]["done"]


def test_a_host_can_measure_and_deploy_while_the_socket_is_idle(
    entry: DeviceEntry, deployed: Path, place: Path
) -> None:
    with serving(deployed, place):
        talk(place, b'{"prompt": "a", "max_tokens": 1}')
        with open_device(entry) as device:
            number = device.current()
            assert number is not None
            device.activate(int(number["release"]))


def test_a_purge_ends_the_server_and_leaves_nothing(
    entry: DeviceEntry, talking: Bundle, tmp_path: Path, place: Path
) -> None:
    own = dataclasses.replace(entry, root=str(tmp_path / "root"))
    with open_device(own) as device:
        device.install(talking, None, text_check(talking))
    with serving(tmp_path / "root/current/run.py", place) as server:
        assert talk(place, b'{"prompt": "a", "max_tokens": 1}')[-1]["done"]
        assert purge_device(LocalTransport(), own)["ended"] >= 1
        assert server.wait(timeout=20) == -signal.SIGKILL
    assert not (tmp_path / "root").exists()


def test_the_unit_is_printed_with_the_steps_and_nothing_is_installed(deployed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["python3", str(deployed), "--systemd"], capture_output=True, text=True, timeout=60, env=environment
    )
    assert f'"{deployed}" --socket %t/merino-edge.sock' in done.stdout  # a root with a blank in it
    assert "WantedBy=default.target" in done.stdout
    assert "loginctl enable-linger" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="not installed: systemd-analyze (apt install systemd)")
def test_systemd_takes_the_unit(tmp_path: Path, deployed: Path) -> None:
    unit = tmp_path / "merino-edge.service"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    for change, code in (("", 0), ("Restrt=always\n", 0), ("ExecStart=/no/such/program\n", 1)):
        unit.write_text(unit_text(sys.executable, str(deployed)).replace("Restart=", change + "Restart="))
        command = ["systemd-analyze", "verify", "--user", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == code, done.stderr
        assert ("merino-edge.service" in done.stderr) == bool(change), done.stderr
