"""Text from token ids as they come: no half characters, nothing of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

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


TEXT = "the cat sat on a mat, naïve 你好 🐑  two  spaces\n"
SPECIAL = "<|endoftext|>"


def byte_level() -> Tokenizer:
    """GPT-2's kind: characters fall apart into bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("ä", "½")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Llama's kind: a space before the first word, and bytes for characters that are no tokens."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted({*TEXT, "▁"} - {*" 好🐑"}), "▁t", "▁▁"]
    merges = [("▁", "t"), ("▁", "▁")]
    tokenizer = Tokenizer(
        models.BPE({word: number for number, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def metaspace() -> Tokenizer:
    """T5's kind: the first token alone loses its space."""
    pieces = [("<unk>", 0.0), *((char, -3.0) for char in sorted({*TEXT, "▁"} - {" "})), ("▁the", -1.0), ("▁", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def word_pieces() -> Tokenizer:
    """BERT's kind: a piece says whether a space comes before it."""
    words = ["[UNK]", "the", "cat", "##s", "##at", ",", "a", "."]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


KINDS = {make.__name__: make() for make in (byte_level, sentencepiece, metaspace, word_pieces)}
for kind in KINDS.values():
    kind.add_special_tokens([AddedToken(SPECIAL, special=True)])


@pytest.mark.parametrize("name", KINDS)
@given(st.data())
def test_a_text_streamed_is_the_text_decoded_whole(name: str, data: st.DataObject) -> None:
    tokenizer = KINDS[name]
    parts = data.draw(st.lists(st.text(alphabet=TEXT, max_size=12), max_size=6))
    ids = [token for part in parts for token in [*tokenizer.encode(part).ids, tokenizer.token_to_id(SPECIAL)]]
    assert "".join(texts(ids, TextStream(tokenizer))) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "sentencepiece"])
@given(st.data())
def test_any_tokens_streamed_are_the_tokens_decoded_whole(name: str, data: st.DataObject) -> None:
    tokenizer = KINDS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=60))
    assert "".join(texts(ids, TextStream(tokenizer))) == tokenizer.decode(ids)


@given(st.lists(st.integers(0, KINDS["sentencepiece"].get_vocab_size() - 1), max_size=60))
def test_bytes_that_are_no_text_spoil_nothing_else(ids: list[int]) -> None:
    # One wrong byte makes this decoder take back the characters beside it, which were shown already.
    tokenizer = KINDS["sentencepiece"]
    whole = [char for char in tokenizer.decode(ids) if char != "\ufffd"]
    shown = iter("".join(texts(ids, TextStream(tokenizer))))
    assert all(char in shown for char in whole)


def test_a_token_of_a_long_text_costs_no_more_than_one_of_a_short_one() -> None:
    decoded: list[int] = []

    class Counting(ByteTokenizer):
        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            decoded.append(len(ids))
            return super().decode(ids)

    for _ in texts(list(("naïve 你好 🐑 " * 200).encode()), TextStream(Counting())):
        pass
    assert max(decoded) <= 8  # two characters


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
