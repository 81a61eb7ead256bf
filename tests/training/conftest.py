"""A small text and a small architecture, made here."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from merino_edge.architecture import Architecture, Block


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents of made-up sentences, about 60 kB, of 200 words so that there is something to learn."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(200)]
    documents = [
        "\n\n".join(" ".join(rng.choices(words, weights=range(1, 201), k=40)) + "." for _ in range(4))
        for _ in range(60)
    ]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def architecture() -> Architecture:
    """Two blocks with a projection between, vocabulary 300."""
    return Architecture((Block(16, 2, 2), Block(32, 1.5, 1)), embedding_width=16, vocab_size=300, head_dim=8)


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests keep token files."""
    return tmp_path_factory.mktemp("tokens")
