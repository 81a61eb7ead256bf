"""Text from token ids as they come: no half characters, nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.agent.text import TextStream
from merino_edge.errors import UsageError
from merino_edge.flows.generate import Sampling, texts


class ByteTokenizer:
    """Each token is one byte, so that characters fall apart."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class PieceTokenizer:
    """Each token is a piece of a text."""

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(self.parts[i] for i in ids)


@given(st.text(max_size=30))
def test_streamed_pieces_join_to_the_whole_text(text: str) -> None:
    data = list(text.encode())
    assert "".join(texts(data, TextStream(ByteTokenizer()))) == bytes(data).decode("utf-8", errors="replace")


@given(st.text(alphabet="ab", max_size=30), st.text(alphabet="ab", min_size=1, max_size=4), st.integers(1, 5))
def test_nothing_of_a_stop_string_is_shown(text: str, stop: str, size: int) -> None:
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    shown = "".join(texts(range(len(parts)), TextStream(PieceTokenizer(parts), (stop,))))
    assert shown == text.split(stop)[0]


def test_a_character_of_three_bytes_waits_for_its_last() -> None:
    seen = list(texts(list("€".encode()), TextStream(ByteTokenizer())))
    assert seen == ["€"]


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}]
)
def test_sampling_refuses_numbers_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**wrong)
