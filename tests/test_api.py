"""The Python interface: what docs/api.md shows is run, and importing it costs nothing."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import merino_edge
from merino_edge import api
from merino_edge.errors import UsageError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"
FUNCTIONS = [name for name in api.__all__ if name != "MerinoEdgeError"]


@pytest.mark.timeout(400)
def test_the_page_of_the_interface_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="not installed: torch (pip install 'merino-edge[train]')")
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(
        str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS | doctest.FAIL_FAST, encoding="utf-8"
    )
    assert tried > 10
    assert failed == 0


def test_everything_is_at_the_top_and_nothing_else() -> None:
    assert merino_edge.__all__ == api.__all__
    assert all(getattr(merino_edge, name) is getattr(api, name) for name in api.__all__)
    with pytest.raises(AttributeError, match="no_such_thing"):
        merino_edge.no_such_thing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_loads_no_library() -> None:
    program = (
        "import sys, merino_edge\n"
        "merino_edge.search_architecture\n"
        "print(sorted({n.partition('.')[0] for n in sys.modules} & {'torch', 'numpy', 'onnx', 'paramiko', 'scipy'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_subpackages_stay_what_they_are() -> None:
    import merino_edge.search

    assert inspect.ismodule(merino_edge.search)
    assert inspect.isfunction(merino_edge.search_architecture)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_is_explained(name: str) -> None:
    function = getattr(api, name)
    text = inspect.getdoc(function) or ""
    assert "Returns:" in text
    assert "Raises:" in text
    for argument in inspect.signature(function).parameters:
        assert f"    {argument}: " in text, argument


def test_a_quantity_without_its_unit_is_refused_as_on_the_command_line() -> None:
    with pytest.raises(UsageError, match="has no unit"):
        merino_edge.search_architecture(latency="50")
    with pytest.raises(UsageError, match="did you mean 'latency'"):
        merino_edge.search_architecture(latncy="50ms")
