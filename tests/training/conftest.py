"""A small text and a small architecture, made here."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.training.train import TrainRequest, train


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


@pytest.fixture(scope="session")
def settings(text_file: Path, token_folder: Path) -> dict[str, Any]:
    """Of a training that takes a moment."""
    return {
        "data": (str(text_file),), "token_folder": token_folder, "context_length": 32, "tokens_per_batch": 256,
        "steps": 12, "threads": 1, "learning_rate": 1e-2,
    }  # fmt: skip


@pytest.fixture
def request_for(settings: dict[str, Any], architecture: Architecture, tmp_path: Path) -> Any:
    """Make a request of the settings, some of them changed, in a folder of the test's."""

    def make(name: str = "checkpoint", **options: Any) -> TrainRequest:
        return TrainRequest(architecture, tmp_path / name, **{**settings, **options})

    return make


@pytest.fixture(scope="session")
def interrupt() -> Callable[[TrainRequest], None]:
    """Break a training off at its first step."""

    def run(request: TrainRequest) -> None:
        def stop(facts: Any) -> None:
            if facts["stage"] == "training":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(request, stop)

    return run
