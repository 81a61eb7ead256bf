"""Perplexities of one checkpoint differ by text and window: each is printed with its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from merino_edge.testing import TINY_SPACE_TOML

pytest.importorskip("torch", reason="not installed: torch (pip install 'merino-edge[train]')")
pytestmark = pytest.mark.timeout(400)

PROGRAM = Path(sys.executable).with_name("merino-edge")
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. A bird sings on the roof.\n\n"


def test_each_perplexity_says_its_tokens_window_and_stride(tmp_path: Path) -> None:
    own = {"XDG_DATA_HOME": "data", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache", "MERINO_EDGE_RUNS": "runs"}
    environment = {**os.environ, **{name: str(tmp_path / part) for name, part in own.items()}}
    (tmp_path / "tiny.toml").write_text(TINY_SPACE_TOML)
    (tmp_path / "text.txt").write_text(TEXT * 2000)

    def run(*words: str) -> str:
        done = subprocess.run([PROGRAM, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 5), done.stderr  # a busy machine disturbs a measurement
        return done.stdout + done.stderr

    space = ("--space", "tiny.toml", "--vocab", "300", "--context", "256")
    run("search", *space, "--parameters", "1M", "--no-verify", "--run", "tiny")
    trained = run("train", "tiny", "--data", "text.txt", "--steps", "2", "--context", "64")
    assert re.search(r"^perplexity .*; [\d,]+ tokens, window 64, stride 64\)$", trained, re.MULTILINE)
    exported = run("export", "tiny", "--recipe", "fp32")
    assert re.search(
        r"^quality .*\([\d,]+ tokens, window 64, stride 64; held out in training\)$", exported, re.MULTILINE
    )
    run(
        "train", "tiny", "--data", "text.txt", "--steps", "4", "--context", "64"
    )  # the file is of another checkpoint now
    scored = run("evaluate", "tiny", "--data", "text.txt", "--tokens", "300", "--exports")
    assert re.search(r"^ *text\.txt +299 +64 +32 ", scored, re.MULTILINE)
    assert re.search(r"fp32.* [\d,]+ +64 +64 +[\d.]+ ", scored, re.MULTILINE)
    assert "exporting again" in scored
    assert re.search(r"fp32.* [+-]0\.00 %", scored)
    timed = run("bench", "tiny", "--recipe", "fp32", "--time", "1s", "--tokens", "300", "-t", "tg8@16")
    assert "perplexity on 299 tokens, window 64, stride 64" in timed
