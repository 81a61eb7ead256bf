"""Every command's `--json` document follows its shipped schema: the real commands, once round on a tiny space."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from merino_edge import errors
from merino_edge.testing import TINY_SPACE_TOML

pytestmark = pytest.mark.timeout(400)

# The keys that the commands promise; a schema may say more, never less.
PROMISED = {
    "profile": {"device", "estimate", "valid", "seconds", "latency_model"},
    "search": {
        "mode", "space", "space_size", "evaluated", "feasible", "seconds", "architecture", "score", "predicted",
        "measured", "constraints", "run",
    },
    "train": {"run", "checkpoint", "tokens", "validation_loss", "perplexity"},
    "evaluate": {"model", "run", "texts", "tasks", "average", "exports"},
    "export": {"bundle", "format", "recipe", "file_bytes", "unique_bytes", "parity"},
    "deploy": {"device", "release", "sha256", "bytes_sent", "previous"},
    "generate": {"device", "text", "tokens"},
    "bench": {"device", "rows"},
    "report": {"run", "page", "verdict", "promises", "missing"},
    "doctor": {"findings", "problems", "unreachable"},
    "config": {"file", "exists", "folders", "settings", "unknown_variables"},
    "error": {"error"},
}  # fmt: skip
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. A bird sings on the roof.\n\n"
VOCAB = "300"


def schema(name: str) -> dict[str, Any]:
    """Read a schema as it is installed."""
    text = resources.files("merino_edge.cli").joinpath("schemas", f"{name}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


class Home:
    """A home of its own in which commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}
        self.environment = {**os.environ, "MERINO_EDGE_RUNS": str(folder / "runs"), "NO_COLOR": "1"}
        self.environment |= {name: str(folder / part) for name, part in own.items()}
        self.environment.pop("MERINO_EDGE_DEVICE", None)

    def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        """Run a command with `--json`, check its exit code, return its one document."""
        done = subprocess.run(
            [Path(sys.executable).with_name("merino-edge"), *words, "--json"],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Go once round the ring; return each command's document."""
    home = Home(tmp_path_factory.mktemp("home"))
    (home.folder / "tiny.toml").write_text(TINY_SPACE_TOML)
    (home.folder / "text.txt").write_text("".join(f"Chapter {n}. {TEXT}" for n in range(400)))
    search = ("search", "--space", "tiny.toml", "--vocab", VOCAB, "--no-verify", "--run", "tiny")
    return {
        "profile": home.run("profile", "--estimate"),
        "search": home.run(*search, "--parameters", "1M"),
        "train": home.run("train", "tiny", "--data", "text.txt", "--steps", "3", "--context", "128"),
        "export": home.run("export", "tiny", "--recipe", "fp32"),
        "evaluate": home.run("evaluate", "tiny", "--data", "text.txt", "--tokens", "300", "--exports"),
        "deploy": home.run("deploy", "tiny", "--recipe", "fp32"),
        "generate": home.run("generate", "The quick", "--max-tokens", "4"),
        "bench": home.run("bench", "tiny", "--recipe", "fp32", "--time", "1s", "--tokens", "64"),
        "report": home.run("report", "tiny", "--svg", "charts"),
        "doctor": home.run("doctor"),
        "config": home.run("config", "--all"),
        "error": home.run("search", "--latency", "50", code=2),
        "infeasible": home.run(*search, "--parameters", "10", code=3),
    }


@pytest.mark.parametrize("name", PROMISED)
def test_a_schema_is_a_schema_and_asks_for_what_is_promised(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    assert set(schema(name)["required"]) >= PROMISED[name] | {"schema_version"}


@pytest.mark.parametrize("name", PROMISED)
def test_a_document_follows_its_schema(documents: dict[str, dict[str, Any]], name: str) -> None:
    jsonschema.validate(documents[name], schema(name), jsonschema.Draft202012Validator)


def test_an_unmeetable_limit_names_the_binding_one_and_the_nearest(documents: dict[str, dict[str, Any]]) -> None:
    jsonschema.validate(documents["infeasible"], schema("error"), jsonschema.Draft202012Validator)
    error = documents["infeasible"]["error"]
    assert (error["kind"], error["exit_code"]) == ("infeasible", 3)
    assert error["binding"] == "parameters"
    assert error["nearest"]
    assert error["least_proven"] is error["nearest_proven"] is True
    broken = {"schema_version": 1, "error": {key: value for key, value in error.items() if key != "least_proven"}}
    with pytest.raises(jsonschema.ValidationError, match="least_proven"):
        jsonschema.validate(broken, schema("error"), jsonschema.Draft202012Validator)


def test_every_kind_of_error_is_in_the_schema() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.MerinoEdgeError)]
    known = schema("error")["properties"]["error"]["properties"]
    assert {c.kind for c in classes} <= set(known["kind"]["enum"])
    assert {c.exit_code for c in classes} <= set(known["exit_code"]["enum"])


def test_every_command_that_prints_json_has_a_schema() -> None:
    shipped = {p.name.removesuffix(".json") for p in resources.files("merino_edge.cli").joinpath("schemas").iterdir()}
    assert set(PROMISED) <= shipped
