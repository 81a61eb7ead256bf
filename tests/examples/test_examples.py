"""The programs of docs/examples, run as a reader runs them: their tokens are those of `merino-edge generate`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from talking import TEXT, write_talking_bundle

from merino_edge.bundle import TOKENIZER, Bundle
from merino_edge.device.client import open_device
from merino_edge.device.registry import local_entry
from merino_edge.exporters.to_onnx import export as export_onnx
from merino_edge.exporters.to_tflite import export as export_tflite
from merino_edge.flows import devices
from merino_edge.flows.deploy import keep_tokenizer, text_check
from merino_edge.flows.generate import Sampling, generate

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
INCLUDE = Path(os.environ.get("ORT_INCLUDE") or ROOT / "build" / "onnxruntime-include")
PROMPT, COUNT = "Once upon a time", 40
LONG = TEXT[:1000]  # more tokens than are fed at once
ONNX_FORMS = [
    ("fp32", "standard"),
    ("fp32", "legacy"),
    ("dynamic_wi8_afp32", "standard"),
    ("dynamic_wi8_afp32", "fast"),
]


def generated(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch, prompt: str = PROMPT) -> str:
    """Deploy a bundle to this machine; return what `merino-edge generate --temperature 0` says."""
    entry = dataclasses.replace(local_entry(), root=str(folder / "root"))
    with open_device(entry) as device:
        device.install(bundle, None, text_check(bundle))
    keep_tokenizer("local", bundle)
    monkeypatch.setattr(devices, "open_device", lambda _, ask=None: open_device(entry))
    return str(generate(prompt, None, Sampling(max_tokens=COUNT, temperature=0.0), lambda text: None)["text"])


def run(*command: str | Path) -> str:
    """Run a program to its end; return what it printed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("recipe", "form"), ONNX_FORMS)
def test_python_gives_the_tokens_of_generate(
    recipe: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_talking_bundle(tmp_path / "bundle", export_onnx, recipe, form)
    expected = generated(bundle, tmp_path, monkeypatch)
    example = EXAMPLES / "from_python.py"
    assert run(sys.executable, example, bundle.folder, PROMPT, str(COUNT)) == PROMPT + expected + "\n"
    long = generated(bundle, tmp_path, monkeypatch, LONG)
    assert run(sys.executable, example, tmp_path / "root/current", LONG, str(COUNT)) == LONG + long + "\n"


@pytest.mark.skipif(not importlib.util.find_spec("ai_edge_litert"), reason="not installed: merino-edge[tflite]")
@pytest.mark.parametrize("recipe", ["fp32", "dynamic_wi8_afp32"])
def test_tflite_in_python_gives_the_tokens_of_generate(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_talking_bundle(tmp_path / "bundle", export_tflite, recipe)
    expected = generated(bundle, tmp_path, monkeypatch)
    example = EXAMPLES / "from_tflite.py"
    assert run(sys.executable, example, bundle.folder, PROMPT, str(COUNT)) == PROMPT + expected + "\n"
    long = generated(bundle, tmp_path, monkeypatch, LONG)
    assert run(sys.executable, example, bundle.folder, LONG, str(COUNT)) == LONG + long + "\n"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the C++ program against the library of this interpreter's onnxruntime."""
    if not shutil.which("g++"):
        pytest.skip("not installed: g++ (apt install g++)")
    if not (INCLUDE / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("no headers of onnxruntime: make onnxruntime-headers (or ORT_INCLUDE=FOLDER)")
    found = importlib.util.find_spec("onnxruntime")
    assert found is not None
    assert found.origin is not None
    libraries = sorted((Path(found.origin).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("this onnxruntime brings no libonnxruntime.so")
    folder = tmp_path_factory.mktemp("cpp")
    library, target = folder / "libonnxruntime.so.1", folder / "from_cpp"  # the name that the program looks for
    library.symlink_to(libraries[0])
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    run("g++", *flags, EXAMPLES / "from_cpp.cpp", "-I", INCLUDE, library, "-Wl,-rpath,$ORIGIN", "-o", target)
    return target


@pytest.mark.parametrize(("recipe", "form"), ONNX_FORMS)
def test_cpp_gives_the_tokens_of_generate(
    program: Path, recipe: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer

    bundle = write_talking_bundle(tmp_path / "bundle", export_onnx, recipe, form)
    tokenizer = Tokenizer.from_file(str(bundle.folder / TOKENIZER))
    end = tokenizer.token_to_id("<|endoftext|>")  # what a caller of the program does
    for prompt in (PROMPT, LONG):
        expected = generated(bundle, tmp_path, monkeypatch, prompt)
        ids = tokenizer.encode(prompt).ids
        assert (len(ids) > 256) == (prompt == LONG)
        said = [int(word) for word in run(program, bundle.folder, str(COUNT), *map(str, ids)).split()]
        assert len(said) == COUNT
        assert tokenizer.decode(said[: said.index(end)] if end in said else said) == expected


def test_cpp_says_what_is_wrong(program: Path, tmp_path: Path) -> None:
    usage = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (usage.returncode, usage.stderr[:6]) == (2, "usage:")
    nothing = subprocess.run([program, tmp_path, "3", "1"], capture_output=True, text=True, timeout=60)
    assert nothing.returncode == 1
    assert "from_cpp: " in nothing.stderr
