"""What the documents tell people to type: every command is parsed, and those that can run here are run, in order.

A code block is marked by a comment before it: `run` (or `run: 3`, the exit code), or `parse` with what it needs. Small
settings come from the environment, so that the commands run as they are written.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from merino_edge.cli.main import cli
from merino_edge.errors import MerinoEdgeError
from merino_edge.search.scores import ScoreOptions
from merino_edge.search.space import load_space
from merino_edge.testing import TINY_SPACE_TOML, tiny_architecture

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GENERATED = {"commands.md", "licences.md"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name not in GENERATED]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>run|parse)(?:: (?P<more>[^>]*?))? -->\n+)?"
    r"(?:^```(?P<language>\w*)\n(?P<fenced>.*?)^```$|(?P<indented>(?:^ {4}[^\n]*\n|^\n(?= {4}))+))",
    re.MULTILINE | re.DOTALL,
)
SMALL = {
    "MERINO_EDGE_SEARCH_SPACE": "tiny.toml",
    "MERINO_EDGE_SEARCH_VERIFY": "false",
    "MERINO_EDGE_SEARCH_CONTEXT": "256",
    "MERINO_EDGE_TRAIN_DATA": "text.txt",
    "MERINO_EDGE_TRAIN_STEPS": "3",
    "MERINO_EDGE_TRAIN_CONTEXT": "128",
    "MERINO_EDGE_BENCH_TIME": "1s",
    "MERINO_EDGE_BENCH_TOKENS": "64",
    "MERINO_EDGE_EVALUATE_DATA": "text.txt",
    "MERINO_EDGE_EVALUATE_TOKENS": "300",
    "MERINO_EDGE_EXPORT_MAX_PERPLEXITY_CHANGE": "50%",
}


@dataclass(frozen=True)
class Block:
    """One code block that holds commands of ours."""

    page: str
    mark: str | None
    more: str
    lines: tuple[str, ...]


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page that hold commands of ours."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        text = match["fenced"] if match["fenced"] is not None else match["indented"]
        lines = [re.sub(r"^(\$ )?(\.venv/bin/)?", "", line.strip()) for line in text.splitlines()]
        ours = tuple(line for line in lines if line.startswith("merino-edge "))
        if ours and match["language"] in (None, "", "sh", "bash", "console"):
            yield Block(page.name, match["mark"], match["more"] or "", ours)


def words_of(line: str) -> list[str]:
    """Return the words after `merino-edge`, as a shell would split them; redirections and pipes end them."""
    words = shlex.split(line, comments=True)[1:]
    ends = [i for i, word in enumerate(words) if word in (">", "|", "&&")]
    return words[: ends[0]] if ends else words


def typed(page: Path) -> Iterator[tuple[str, bool]]:
    """Yield every command of a page, in blocks, within other commands, and in the text; whether it is whole."""
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        yield from ((line, True) for line in block.lines)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from ((line, True) for line in re.findall(r"\$\((merino-edge [^)]+)\)", text))
    yield from ((span.replace("\n", " "), False) for span in re.findall(r"`(merino-edge [^`]+)`", prose))


def parse(words: list[str]) -> None:
    """Let click parse a command without running it."""
    with click.Context(cli, info_name="merino-edge") as context:
        name, command, rest = cli.resolve_command(context, list(words))
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            _, command, rest = command.resolve_command(context, rest)
        assert command is not None
        try:
            command.make_context(name, rest, parent=context)
        except click.exceptions.Exit as ended:  # --help
            assert ended.exit_code == 0


COMMANDS = [(page.name, line, whole) for page in PAGES for line, whole in dict.fromkeys(typed(page))]


@pytest.mark.parametrize(("page", "line", "whole"), COMMANDS)
def test_every_command_of_the_documents_can_be_parsed(page: str, line: str, whole: bool) -> None:
    words = words_of(line)
    if words and words[0].isupper():
        return  # a word that stands for any command
    try:
        parse(words)
    except click.MissingParameter as error:
        assert not whole, f"{page}: {line}: {error}"  # the text may speak of a command without its arguments
    except (click.ClickException, MerinoEdgeError) as error:
        pytest.fail(f"{page}: {line}: {error}")


def test_the_parsing_would_notice_a_wrong_option() -> None:
    for words in (["search", "--latncy", "5ms"], ["search", "--latency", "5"], ["serch"], ["devices", "ad"]):
        with pytest.raises((click.ClickException, MerinoEdgeError)):
            parse(words)


def test_what_is_marked_as_not_run_says_why() -> None:
    marked = [block for page in PAGES for block in blocks_of(page) if block.mark == "parse"]
    assert [block for block in marked if not block.more] == []


@pytest.mark.parametrize("page", ["README.md", "first-run.md", "tutorial-pi.md", "tutorial-jetson.md", "extending.md"])
def test_a_page_that_people_follow_marks_every_block(page: str) -> None:
    (path,) = (p for p in PAGES if p.name == page)
    assert [block.lines for block in blocks_of(path) if block.mark is None] == []


def runnable(page: Path) -> list[Block]:
    """Return the blocks of a page that are to be run."""
    return [block for block in blocks_of(page) if block.mark == "run"]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_its_order(page: Path, tmp_path: Path) -> None:
    own = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache", "MERINO_EDGE_RUNS": "runs"}
    program = Path(sys.executable).with_name("merino-edge")
    environment = {**os.environ, **SMALL, **{name: str(tmp_path / part) for name, part in own.items()}}
    (tmp_path / "tiny.toml").write_text(TINY_SPACE_TOML)
    (tmp_path / "text.txt").write_text(text_of_many_words())
    if any("tutorial" in line for block in runnable(page) for line in block.lines):  # a run that the page speaks of
        search = ["search", "--parameters", "1M", "--vocab", "300", "--run", "tutorial"]
        subprocess.run([program, *search], cwd=tmp_path, env=environment, check=True, capture_output=True)
    for block in runnable(page):
        for line in block.lines:
            done = subprocess.run(
                [program, *words_of(line)], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL,
                capture_output=True, text=True,
            )  # fmt: skip
            expected = int(block.more or 0)
            assert done.returncode == expected or tolerable(line, done.returncode), (
                f"{line}\n{done.stdout}{done.stderr}"
            )


def text_of_many_words() -> str:
    """Return 100,000 words of 8,000 kinds: a vocabulary of a few thousand can be made of it."""
    random = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    kinds = ["".join(random.choice(syllables, 3)) for _ in range(8000)]
    words = random.choice(kinds, 100_000)
    return "\n\n".join(" ".join(words[i : i + 50]) + "." for i in range(0, len(words), 50))


def tolerable(line: str, code: int) -> bool:
    """Say whether a code is no fault of the documents: a busy machine disturbs, and `doctor` may find something."""
    return (line.startswith("merino-edge bench") and code == 5) or (line.startswith("merino-edge doctor") and code == 1)


def test_the_reference_of_commands_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "cli_reference.py", "--check"])
    assert done.returncode == 0, "run: .venv/bin/python tools/cli_reference.py"


def test_what_the_readme_shows_is_what_the_command_prints(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```console\n\$ (merino-edge [^\n]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    program = Path(sys.executable).with_name("merino-edge")
    done = subprocess.run([program, *words_of(block[0])], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds = re.compile(r"in [\d.]+ s$", re.MULTILINE)
    assert seconds.sub("in some time", block[1]) in seconds.sub("in some time", done.stdout)


def test_the_messages_that_are_explained_are_those_that_are_raised() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    folders = (ROOT / "merino_edge", ROOT / "exporters")
    source = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    pieces = [
        piece.strip("' ") for cell in cells for span in re.findall(r"`([^`]+)`", cell) for piece in span.split("...")
    ]
    assert len(pieces) > 12
    assert [piece for piece in pieces if piece not in source] == []


def example(page: str, language: str, word: str) -> str:
    """Return the one code block of a page in a language that holds a word."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = [b for b in re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if word in b]
    assert len(found) == 1
    return found[0]


def test_the_file_of_settings_that_is_shown_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "merino-edge" / "config.toml"
    file.parent.mkdir()
    file.write_text(example("settings.md", "toml", "device ="))
    program = Path(sys.executable).with_name("merino-edge")
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([program, "config"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"search\.latency +50ms", done.stdout)


def test_the_space_and_the_score_that_are_shown_work(tmp_path: Path) -> None:
    (tmp_path / "shown.toml").write_text(example("extending.md", "toml", "[[block]]"))
    assert load_space(str(tmp_path / "shown.toml")).size == 32
    names: dict[str, Any] = {}
    exec(example("extending.md", "python", "def wide_and_shallow"), names)
    assert names["wide_and_shallow"](ScoreOptions())(tiny_architecture()) == 32.0
