"""Weights made from a seed: the same bytes on every machine, numbers like trained ones, nonsense refused."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest

from merino_edge.agent.synthetic import CHUNK_BYTES, DescriptionError, check, digest, generate


def make(*pieces: tuple[str, int, str], seed: int = 0) -> bytes:
    return b"".join(generate(list(pieces), seed))


def test_random_bytes_are_the_mersenne_twisters() -> None:
    count = CHUNK_BYTES + 20
    state = random.Random(7).getstate()[1]
    twister = np.random.RandomState()
    twister.set_state(("MT19937", np.array(state[:-1], np.uint32), state[-1]))
    assert make(("integers", count, ""), seed=7) == twister.bytes(count)


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_floats_have_either_sign_and_the_size_of_trained_weights(kind: str) -> None:
    values = np.frombuffer(make((kind, 1 << 16, "")), kind).astype(np.float64)
    assert np.isfinite(values).all()
    assert np.abs(values).min() >= 2**-7 and np.abs(values).max() < 2**-5
    assert abs((values > 0).mean() - 0.5) < 0.02
    assert len(np.unique(values)) > 0.05 * len(values)


def test_a_pattern_goes_on_over_the_end_of_a_chunk() -> None:
    assert make(("repeat", CHUNK_BYTES + 7, "010203")) == (bytes([1, 2, 3]) * CHUNK_BYTES)[: CHUNK_BYTES + 7]


def test_pieces_follow_each_other() -> None:
    made = make(("zeros", 3, ""), ("literal", 2, "abcd"), ("integers", 0, ""), ("repeat", 4, "ff"))
    assert made == b"\0\0\0\xab\xcd\xff\xff\xff\xff"


def test_the_digest_is_that_of_the_bytes_and_moves_with_the_seed() -> None:
    pieces = [("integers", 100, ""), ("float32", 64, "")]
    assert digest(pieces, 1) == hashlib.sha256(make(*pieces, seed=1)).hexdigest() != digest(pieces, 2)


@pytest.mark.parametrize(
    "pieces",
    [
        "zeros",
        [("zeros", 1)],
        [("noise", 1, "")],
        [("zeros", -1, "")],
        [("zeros", True, "")],
        [("zeros", 1, "00")],
        [("zeros", 1, None)],
        [("literal", 2, "ab")],
        [("repeat", 2, "")],
        [("repeat", 2, "xy")],
        [("zeros", 1 << 35, ""), ("zeros", 1 << 36, "")],
    ],
)
def test_what_is_no_description_is_refused(pieces: object) -> None:
    with pytest.raises(DescriptionError):
        check(pieces)
