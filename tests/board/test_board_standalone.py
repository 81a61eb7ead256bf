"""An emulated aarch64 board that generates by itself: a release's own run.py, and the programs of docs/examples."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import emulator
import pytest
from board_desk import Desk
from talking import write_talking_bundle
from tokenizers import Tokenizer

from merino_edge.bundle import Bundle
from merino_edge.exporters.to_onnx import export

pytestmark = pytest.mark.timeout(1200)
ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
INCLUDE = Path(os.environ.get("ORT_INCLUDE") or ROOT / "build" / "onnxruntime-include")
OWN = "~/.local/share/merino-edge"
PROMPT = "Once upon a time"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_talking_bundle(tmp_path_factory.mktemp("talking"), export, "dynamic_wi8_afp32", "fast")


@pytest.fixture(scope="session")
def plain(desk: Desk, added: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
    if not desk.standalone:
        pytest.skip("the same on every core: run on the last one")
    return desk.type("deploy", "--bundle", str(bundle.folder), "--device", desk.name)


@pytest.fixture(scope="session")
def standalone(desk: Desk, plain: dict[str, Any], bundle: Bundle) -> dict[str, Any]:
    return desk.type("deploy", "--bundle", str(bundle.folder), "--device", desk.name, "--standalone")


@pytest.fixture(scope="session")
def greedy(desk: Desk, standalone: dict[str, Any]) -> str:
    words = ("--device", desk.name, "--max-tokens", "12", "--temperature", "0")
    return str(desk.type("generate", PROMPT, *words)["text"])


def copy(desk: Desk, path: Path) -> None:
    """Put a program into the home of the board's user."""
    command = ["scp", "-q", "-F", str(desk.board.ssh_config), str(path), f"{emulator.HOST}:"]
    subprocess.run(command, check=True, timeout=120)


def test_without_a_tokenizer_run_py_names_the_command(desk: Desk, plain: dict[str, Any]) -> None:
    assert plain["run_py"] is None
    with pytest.raises(emulator.BoardError, match="deploy --standalone"):
        desk.board.ssh(f"python3 {OWN}/current/run.py '{PROMPT}'")


def test_run_py_gives_the_text_of_generate(desk: Desk, standalone: dict[str, Any]) -> None:
    text = str(desk.type("generate", PROMPT, "--device", desk.name, "--max-tokens", "12", "--seed", "3")["text"])
    said = desk.board.ssh(f"python3 {standalone['run_py']} '{PROMPT}' --max-tokens 12 --seed 3")
    assert said == PROMPT + "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text) + "\n"


def test_the_next_deployment_can_do_it_unasked(desk: Desk, standalone: dict[str, Any], bundle: Bundle) -> None:
    again = desk.type("deploy", "--bundle", str(bundle.folder), "--device", desk.name)
    assert again["run_py"] == standalone["run_py"]
    assert again["bytes_sent"] == 0


def test_it_serves_on_a_socket_there(desk: Desk, greedy: str) -> None:
    run_py = f"python3 {OWN}/current/run.py"
    wait = "for i in $(seq 60); do [ -S ~/s ] && break; sleep 1; done"
    ask = f"{run_py} '{PROMPT}' --max-tokens 12 --temperature 0 --socket ~/s"
    serve = f"{run_py} --socket ~/s 2> /dev/null & server=$!; {wait}; stat -c %a ~/s; {ask}; kill $server; wait $server"
    mode, said = desk.board.ssh(serve).split("\n", 1)
    assert mode == "600"
    assert said == PROMPT + "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in greedy) + "\n"
    assert "ExecStart=/usr/bin/python3" in desk.board.ssh(f"{run_py} --systemd")


def test_the_python_example_gives_the_tokens_of_generate(desk: Desk, greedy: str) -> None:
    copy(desk, EXAMPLES / "from_python.py")
    paths = "PYTHONPATH=$(echo runtimes/onnxruntime-*/ runtimes/tokenizers-*/ | tr ' ' :)"
    said = desk.board.ssh(f"cd {OWN} && {paths} python3 ~/from_python.py current '{PROMPT}' 12; rm ~/from_python.py")
    assert said == PROMPT + greedy + "\n"


def test_the_cpp_example_gives_the_tokens_of_generate(desk: Desk, greedy: str, bundle: Bundle, tmp_path: Path) -> None:
    if not shutil.which("aarch64-linux-gnu-g++"):
        pytest.skip("not installed: aarch64-linux-gnu-g++ (apt install g++-aarch64-linux-gnu)")
    if not (INCLUDE / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("no headers of onnxruntime: make onnxruntime-headers (or ORT_INCLUDE=FOLDER)")
    there = desk.board.ssh(f"ls {OWN}/runtimes/onnxruntime-*/onnxruntime/capi/libonnxruntime.so.1.*").strip()
    library, program = tmp_path / "libonnxruntime.so.1", tmp_path / "from_cpp"
    source = f"{emulator.HOST}:{there}"
    subprocess.run(["scp", "-q", "-F", str(desk.board.ssh_config), source, str(library)], check=True, timeout=300)
    flags = ["-std=c++17", "-O2", "-I", str(INCLUDE), "-Wl,-rpath,$ORIGIN", "-o", str(program)]
    command = ["aarch64-linux-gnu-g++", str(EXAMPLES / "from_cpp.cpp"), str(library), *flags]
    subprocess.run(command, check=True, timeout=300)
    copy(desk, program)
    tokenizer = Tokenizer.from_file(str(bundle.folder / "tokenizer.json"))
    ids = " ".join(map(str, tokenizer.encode(PROMPT).ids))
    desk.board.ssh(f"ln -s {there} ~/libonnxruntime.so.1")
    said = desk.board.ssh(f"~/from_cpp {OWN}/current 12 {ids}; rm ~/from_cpp ~/libonnxruntime.so.1")
    assert tokenizer.decode([int(word) for word in said.split()]) == greedy
