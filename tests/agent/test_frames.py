"""The wire format: what is sent arrives, what is damaged is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.agent import frames
from merino_edge.agent.frames import Decoder, Frame, FrameError

KINDS = st.sampled_from(sorted(frames.TYPE_NAMES))
FRAMES = st.builds(Frame, KINDS.filter(lambda k: k != frames.END), st.integers(0, 2**32 - 1), st.binary(max_size=300))
END = frames.encode(frames.END, 0)


def encode(frame: Frame) -> bytes:
    return frames.encode(frame.type, frame.request, frame.payload)


@given(st.lists(FRAMES, max_size=5), st.integers(1, 50))
def test_frames_arrive_as_sent_in_whatever_pieces(sent: list[Frame], step: int) -> None:
    data = b"".join(encode(f) for f in sent) + END
    decoder = Decoder()
    received = [f for at in range(0, len(data), step) for f in decoder.feed(data[at : at + step])]
    decoder.close()
    assert received == [*sent, Frame(frames.END, 0, b"")]


@given(FRAMES, st.data())
def test_any_truncation_is_noticed(frame: Frame, data: st.DataObject) -> None:
    whole = encode(frame) + END
    decoder = Decoder()
    decoder.feed(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(FrameError, match="cut"):
        decoder.close()


@given(FRAMES, st.data())
def test_any_flipped_bit_is_noticed(frame: Frame, data: st.DataObject) -> None:
    whole = bytearray(encode(frame) + END)
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    decoder = Decoder()
    with pytest.raises(FrameError):
        decoder.feed(bytes(whole))
        decoder.close()


@given(st.binary(max_size=2000))
def test_random_bytes_raise_nothing_but_frame_errors(noise: bytes) -> None:
    try:
        for frame in Decoder(noise=frames.MAX_NOISE).feed(noise):
            frame.json()
    except FrameError:
        pass


@given(st.binary(max_size=400).filter(lambda b: frames.MAGIC not in b and not b.endswith(b"M")))
def test_a_login_banner_before_the_first_frame_is_passed_over(banner: bytes) -> None:
    decoder = Decoder(noise=frames.MAX_NOISE)
    assert decoder.feed(banner + END) == [Frame(frames.END, 0, b"")]


def test_a_banner_without_end_is_refused() -> None:
    with pytest.raises(FrameError, match="other bytes"):
        Decoder(noise=1000).feed(b"x" * 2000)


def test_bytes_after_the_end_frame_are_refused() -> None:
    with pytest.raises(FrameError, match="follow"):
        Decoder().feed(END + b"x")


def test_a_payload_over_a_mebibyte_is_refused_on_both_sides() -> None:
    with pytest.raises(FrameError, match="exceeds"):
        frames.encode(frames.DATA, 1, bytes(frames.MAX_PAYLOAD + 1))


@pytest.mark.parametrize(
    "payload",
    [
        b"[1]",
        b"{",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":1,"a":2}',
        b"\xff",
        b"[" * 100_000,
        b'{"a":' + b"9" * 40 + b"}",
    ],
)
def test_a_payload_that_is_no_honest_object_is_refused(payload: bytes) -> None:
    with pytest.raises(FrameError):
        frames.parse_object(payload)
