"""The arrows between the rooms. To change an arrow, change the table here in the same commit.

words <- {search, training, device, exporters, report} <- flows <- {cli, api}        agent imports nothing of ours
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

WORDS = {
    "architecture", "bundle", "checkpoint", "errors", "exporting", "files", "measurement", "progress", "reference",
    "run", "settings", "tokenizer_settings", "units",
}  # fmt: skip

# Room -> the rooms whose modules it may import, beside its own.
ROOMS = {
    "words": set(),
    "agent": set(),
    "device_profiles": set(),
    "search": {"words"},
    "training": {"words"},
    "exporters": {"words"},
    "device": {"words", "agent", "device_profiles"},
    "report": {"words"},
    "flows": {"words", "agent", "search", "training", "device", "report"},  # exporters come by entry point
    "cli": {"words", "flows"},
    "api": {"words", "flows"},
    "testing": {"words", "agent", "search", "device"},
}

# Room -> what it may import of others' packages.
THIRD_PARTY = {
    "words": {"ml_dtypes", "numpy", "safetensors", "scipy"},
    # In its measuring child, and in what a release's own run.py does: see AGENT_CHILD.
    "agent": {"ai_edge_litert", "numpy", "onnxruntime", "tflite_runtime", "tokenizers"},
    "device_profiles": set(),
    "search": {"numpy", "scipy"},
    "training": {
        *("accelerate", "datasets", "lm_eval", "numpy", "psutil", "safetensors", "tokenizers", "torch"),
        *("transformers", "zstandard"),
    },
    "exporters": {"ai_edge_litert", "ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxruntime", "scipy", "tflite_runtime"},
    "device": {"cryptography", "numpy", "paramiko", "psutil"},
    "report": set(),
    "flows": {"jinja2", "numpy", "psutil", "resvg_py", "starlette", "tokenizers", "uvicorn"},
    "cli": {"click", "rich"},
    "api": set(),
    "testing": {"numpy"},
}

_CHILD = "measure opening runtime_check sampling session session_onnx session_unrolled session_tflite standalone worker"
AGENT_CHILD = {f"merino_edge.agent.{name}" for name in _CHILD.split()}
MAX_LINES_OF_A_FILE = 450
MAX_LINES_OF_A_FUNCTION = 60


@dataclass(frozen=True)
class Module:
    """One source file under the name it is installed as."""

    name: str
    path: Path

    @property
    def room(self) -> str:
        """The package below `merino_edge`, or `words`."""
        part = [*self.name.split("."), "__init__"][1]
        return "words" if part in WORDS else "api" if part == "__init__" else part

    @property
    def tree(self) -> ast.Module:
        """The parsed source."""
        return ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))


def find_modules() -> dict[str, Module]:
    """Return every module of the source tree by its installed name."""
    folders = {"merino_edge": "", "exporters": "merino_edge.", "device_profiles": "merino_edge."}
    modules = {}
    for folder, prefix in folders.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] in (("merino_edge", "exporters"), ("merino_edge", "device_profiles")):
                continue  # a developer's link to the folders beside
            name = prefix + ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = Module(name, path)
    return modules


MODULES = find_modules()


def imports_of(module: Module, nodes: Iterator[ast.AST] | None = None) -> list[tuple[str, int]]:
    """Return each imported module, as far as it is one of ours to the file, and its line."""
    found = []
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node in nodes or ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.append((whole if whole in MODULES else base, node.lineno))
    return found


def third_party(name: str) -> str | None:
    """Return the top package of an import that is neither ours nor the standard library's."""
    top = name.split(".")[0]
    return None if top == "merino_edge" or top in sys.stdlib_module_names else top


def everywhere() -> Iterator[tuple[Module, str, str]]:
    """Yield every import: the module it stands in, its place, what it imports."""
    for module in MODULES.values():
        for name, line in imports_of(module):
            yield module, f"{module.path.relative_to(ROOT)}:{line}", name


def test_every_room_is_in_the_tables() -> None:
    assert {module.room for module in MODULES.values()} <= set(ROOMS)
    assert set(ROOMS) == set(THIRD_PARTY)


def test_what_is_imported_of_ours_exists() -> None:
    ours = ((place, name) for _, place, name in everywhere() if name.startswith("merino_edge."))
    assert [f"{place}: {name}" for place, name in ours if name not in MODULES] == []


def test_a_room_imports_only_what_its_arrows_allow() -> None:
    wrong = []
    for module, place, name in everywhere():
        if name in MODULES and name != "merino_edge":
            room = MODULES[name].room
            if room not in ROOMS[module.room] | {module.room}:
                wrong.append(f"{place}: {module.room} may not import {room}")
    assert wrong == []


def test_a_room_uses_only_its_own_third_parties() -> None:
    used = ((module, place, third_party(name)) for module, place, name in everywhere())
    assert [f"{p}: {package}" for m, p, package in used if package and package not in THIRD_PARTY[m.room]] == []


def test_only_ssh_knows_paramiko() -> None:
    knows = {module.name for module, _, name in everywhere() if third_party(name) == "paramiko"}
    assert knows <= {"merino_edge.device.ssh"}


def test_only_the_measuring_child_of_the_agent_imports_a_third_party() -> None:
    agent = ((m, place, name) for m, place, name in everywhere() if m.room == "agent" and m.name not in AGENT_CHILD)
    assert [f"{place}: {name}" for _, place, name in agent if third_party(name)] == []


def test_the_agent_starts_on_the_standard_library_alone() -> None:
    todo, seen = ["merino_edge.agent.__main__", "merino_edge.agent.server"], set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [n for n, _ in imports_of(MODULES[name], iter(MODULES[name].tree.body)) if n in MODULES]
    assert not seen & AGENT_CHILD


def test_the_agent_is_written_in_python_3_8() -> None:
    for module in MODULES.values():
        if module.room == "agent":
            ast.parse(module.path.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_has_an_import_cycle(room: str) -> None:
    inside = {name: module for name, module in MODULES.items() if module.room == room}
    graph = {name: {n for n, _ in imports_of(module) if n in inside and n != name} for name, module in inside.items()}
    while ready := [name for name, needs in graph.items() if not needs]:
        for name in ready:
            del graph[name]
        for needs in graph.values():
            needs.difference_update(ready)
    assert not graph, f"cycle among {sorted(graph)}"


def test_only_cli_prints() -> None:
    prints = []
    for module in MODULES.values():
        calls = (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))
        prints += [f"{module.name}:{call.lineno}" for call in calls if ast.unparse(call.func) == "print"]
    assert [place for place in prints if not place.startswith("merino_edge.cli.")] == []


def test_every_file_says_what_is_whole_in_it() -> None:
    assert [m.name for m in MODULES.values() if not ast.get_docstring(m.tree)] == []


def test_no_file_is_too_long_to_read() -> None:
    lengths = {m.name: len(m.path.read_text(encoding="utf-8").splitlines()) for m in MODULES.values()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES_OF_A_FILE} == {}


def test_every_function_fits_on_a_screen() -> None:
    long = {}
    for module in MODULES.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_LINES_OF_A_FUNCTION:
                    long[f"{module.name}.{node.name}"] = lines
    assert long == {}


def test_no_file_has_a_name_that_shadows_or_says_nothing() -> None:
    names = {m.path.stem for m in MODULES.values()}
    assert not names & {"utils", "common", "helpers", "misc", "onnx", "torch"}
    assert not (ROOT / "merino_edge" / "profile.py").exists()
