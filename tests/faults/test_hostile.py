"""A broken or hostile device: no crash, bounded memory, no control byte, nothing outside, no bad number."""

from __future__ import annotations

import itertools
import json
import math
import resource
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import liar
import pytest
from campaign import Campaign
from liar import FACTS, HELLO, HONEST, MEASURED, RELEASE, TEST, Answer, Liar, honest, instead, result

from merino_edge.agent import frames
from merino_edge.agent.frames import CANCEL, DATA, ERROR, EVENT, PING, RESULT, encode, encode_json
from merino_edge.bundle import Bundle
from merino_edge.device import agent_link
from merino_edge.device.client import AgentDevice, GenerateOptions, TestSpec
from merino_edge.errors import MerinoEdgeError
from merino_edge.exporters.to_onnx import export
from merino_edge.flows import devices
from merino_edge.flows.measuring import to_measurement
from merino_edge.testing import tiny_architecture, write_bundle

PROMISED_FRAMES = 100_000
PROMISED_ATTACKS = 60
MEMORY_BYTES = 64 << 20
EVIL = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\u202egone\u0085\u009b31m\x00\r\n\ud800"
SPECS = (TestSpec("tg", 64, 0),)

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"), export, tiny_architecture())


# -- what the host does with a device; every number it returns is one that a search would take --


def use_facts(device: AgentDevice, bundle: Bundle) -> None:
    facts = device.facts()
    check_texts(facts)
    json.dumps(facts, allow_nan=False)
    assert facts["device_id"]
    assert facts["power_mode"]


def use_measure(device: AgentDevice, bundle: Bundle) -> None:
    device._runtime = "r"
    for found in device.measure(bundle, SPECS):
        record = to_measurement(found, bundle, FACTS, 64)
        assert all(0 < s < 86_400 * 10**9 for s in record.samples_ns)
        assert math.isfinite(record.p50_ms)
        assert record.p50_ms > 0
        assert 0 < record.peak_memory_bytes < 1 << 62
        json.dumps(record.to_json(), allow_nan=False)
        check_texts(record.to_json())


def use_install(device: AgentDevice, bundle: Bundle) -> None:
    device._runtime = "r"
    assert device.install(bundle).release >= 1


def use_releases(device: AgentDevice, bundle: Bundle) -> None:
    current, found = device.current(), device.releases()
    check_texts([current, found])
    for release in found:
        assert release["release"] >= 1
        assert release["manifest"]["context_length"] > 0


def use_generate(device: AgentDevice, bundle: Bundle) -> None:
    tokens = list(device.generate([1, 2], GenerateOptions(max_tokens=8)))
    assert len(tokens) <= 8
    assert all(token >= 0 for token in tokens)
    assert all(math.isfinite(v) for v in (device.last_generation or {}).values())


def use_perplexity(device: AgentDevice, bundle: Bundle) -> None:
    import numpy as np

    device._runtime = "r"
    assert math.isfinite(device.perplexity(bundle, np.arange(8)).value)


def use_rest(device: AgentDevice, bundle: Bundle) -> None:
    device.activate(1)
    assert device.collect(1) >= 0


USES: dict[str, Callable[[AgentDevice, Bundle], None]] = {
    "facts": use_facts,
    "measure": use_measure,
    "install": use_install,
    "have": use_install,
    "releases": use_releases,
    "generate": use_generate,
    "perplexity": use_perplexity,
    "activate": use_rest,
    "collect": use_rest,
}


def check_texts(value: object) -> None:
    """Raise where a text could steer a terminal."""
    if isinstance(value, str):
        assert value.isprintable(), repr(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_texts(key)
            check_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_texts(item)


def judge(channel: Any, uses: list[Callable[[AgentDevice, Bundle], None]], bundle: Bundle) -> str | None:
    """Use a lying device; return what is wrong with how that ended, None where nothing is."""
    device = None
    try:
        device = liar.device(channel)
        for use in uses:
            use(device, bundle)
    except MerinoEdgeError as error:
        check_texts([error.message, error.hint or "", json.loads(json.dumps(error.to_json()))])
        return None if error.hint else f"no next step: {error.message}"
    except Exception as error:  # noqa: BLE001  whatever comes out is what the campaign looks for
        return f"{type(error).__name__}: {error}"
    finally:
        if device is not None:
            device.close()
    return None


# -- attacks by hand --


def changed(value: dict[str, Any], **words: Any) -> dict[str, Any]:
    """Return a table with other values; `...` takes a key away."""
    return {k: v for k, v in {**value, **words}.items() if v is not ...}


def says(op: str, value: object) -> Answer:
    return instead(op, lambda request, words: result(request, value))


def sends(op: str, make: Callable[[int], bytes]) -> Answer:
    return instead(op, lambda request, words: make(request))


def measured(**words: Any) -> Answer:
    return says("measure", changed(MEASURED, tests=[changed(TEST, **words)]))


def listed(**words: Any) -> Answer:
    return says("releases", {"current": 1, "releases": [changed(RELEASE, **words)]})


def peak(value: Any) -> Answer:
    return says("measure", changed(MEASURED, peak_memory_bytes=value))


def nll(value: Any) -> Answer:
    return says("perplexity", {"nll_nats_sum": value, "tokens": 5})


def refuses(value: dict[str, Any]) -> Answer:
    return sends("facts", lambda n: encode(ERROR, n, json.dumps(value).encode("utf-8", "surrogatepass")))


def event(n: int, value: object) -> bytes:
    return encode(EVENT, n, json.dumps(value).encode())


def refused_traversal(name: str) -> Answer:
    return says("have", {"missing": [{"sha256": name, "offset": 0}]})


NUMBERS: dict[str, Any] = {
    "NaN": math.nan, "infinite": math.inf, "negative": -5, "zero": 0, "1e308": 1e308, "a float": 1.5, "true": True,
    "a text": "1000", "a huge whole number": 10**25, "nothing": None, "a list": [[1]],
}  # fmt: skip
MANIFEST = RELEASE["manifest"]
DEEP = b'{"a":' * 200_000 + b"1" + b"}" * 200_000

ATTACKS: dict[str, tuple[str, Answer]] = {
    **{f"samples that are {k}": ("measure", measured(samples_ns=[v] * 64)) for k, v in NUMBERS.items()},
    **{f"peak memory {k}": ("measure", peak(v)) for k, v in NUMBERS.items()},
    **{f"tokens that are {k}": ("generate", sends("generate", lambda n, v=v: event(n, {"token": v}))) for k, v in
       NUMBERS.items() if k != "zero"},
    **{f"perplexity {k}": ("perplexity", nll(v)) for k, v in NUMBERS.items()},
    "one good sample among bad": ("measure", measured(samples_ns=[1000, -1, 1000])),
    "no samples": ("measure", measured(samples_ns=[])),
    "no warm-up": ("measure", measured(warmup_ns=...)),
    "more tests than asked": ("measure", says("measure", changed(MEASURED, tests=[TEST] * 2))),
    "no tests": ("measure", says("measure", changed(MEASURED, tests=[]))),
    "tests that are a table": ("measure", says("measure", changed(MEASURED, tests={"0": TEST}))),
    "conditions that are a list": ("measure", measured(conditions=[1, 2])),
    "conditions that steer": ("measure", measured(conditions={EVIL: EVIL})),
    "a reason that steers": ("measure", measured(invalid_reason=EVIL)),
    "a runtime that steers": ("measure", says("measure", changed(MEASURED, runtime=EVIL, provider=EVIL))),
    "progress that is negative": ("measure", sends("measure", lambda n: event(n, {"done": -1, "share": 0.5}))),
    "progress that is NaN": ("measure", sends("measure", lambda n: event(n, {"done": 0, "share": math.nan}))),
    "facts that are a list": ("facts", says("facts", [1])),
    "facts that are empty": ("facts", says("facts", {})),
    "facts without a CPU": ("facts", says("facts", changed(FACTS, cpu="fast"))),
    "an id that is a number": ("facts", says("facts", changed(FACTS, device_id=7))),
    "an id that climbs": ("facts", says("facts", changed(FACTS, device_id="../../../etc/passwd"))),
    "facts that steer": ("facts", says("facts", changed(FACTS, os_image=EVIL, board_model=EVIL, governor=EVIL))),
    "memory below zero": ("facts", says("facts", changed(FACTS, memory={"total": -1}))),
    "cores without end": ("facts", says("facts", changed(FACTS, cpu={"cores": 10**30}))),
    "runtimes that are none": ("facts", says("facts", changed(FACTS, runtimes=["x", 1]))),
    "nested without end": ("facts", sends("facts", lambda n: encode(RESULT, n, DEEP[: frames.MAX_PAYLOAD]))),
    "nested 900 deep": ("facts", sends("facts", lambda n: encode(RESULT, n, b'{"a":' * 900 + b"1" + b"}" * 900))),
    "the same key twice": ("facts", sends("facts", lambda n: encode(RESULT, n, b'{"device_id":"a","device_id":"b"}'))),
    "no UTF-8": ("facts", sends("facts", lambda n: encode(RESULT, n, b'{"device_id":"\xff\xfe"}'))),
    "no JSON": ("facts", sends("facts", lambda n: encode(RESULT, n, b"<html>"))),
    "an empty payload": ("facts", sends("facts", lambda n: encode(RESULT, n))),
    "a number of a million digits": (
        "facts",
        sends("facts", lambda n: encode(RESULT, n, b'{"a":' + b"9" * 999_000 + b"}")),
    ),
    "an answer to another question": ("facts", sends("facts", lambda n: result(n + 1, FACTS))),
    "an answer to a question far ahead": ("facts", sends("facts", lambda n: result(n + 99, FACTS))),
    "the answer twice": ("facts", sends("facts", lambda n: result(n, FACTS) * 2)),
    "an end instead of an answer": ("facts", sends("facts", lambda n: liar.END)),
    "a hello instead of an answer": ("facts", sends("facts", lambda n: HELLO)),
    "data instead of an answer": ("facts", sends("facts", lambda n: encode(DATA, n, b"x" * 99))),
    "a cancel instead of an answer": ("facts", sends("facts", lambda n: encode(CANCEL, n))),
    "half a frame, then the end": ("facts", sends("facts", lambda n: result(n, FACTS)[:30] + liar.END)),
    "a wrong checksum": ("facts", sends("facts", lambda n: result(n, FACTS)[:-1] + b"?")),
    "bytes after the end": ("facts", sends("facts", lambda n: liar.END + b"more")),
    "a type of tomorrow": ("facts", sends("facts", lambda n: b"MRN\x01\x63" + bytes(16))),
    "a frame of 4 GiB": ("facts", sends("facts", lambda n: b"MRN\x01\x03" + b"\xff" * 16)),
    "an error that steers": ("facts", refuses({"kind": EVIL, "message": EVIL, "hint": EVIL, "details": {EVIL: EVIL}})),
    "an error with our own words": (
        "facts",
        refuses({"kind": "busy", "message": "m", "details": {"message": 1, "hint": 2, "exit_code": 0, "kind": "ok"}}),
    ),
    "an error whose details are a list": ("facts", refuses({"kind": "busy", "message": "m", "details": [1]})),
    "an error of nothing": ("facts", refuses({})),
    "a missing file that climbs": ("have", refused_traversal("../../../../tmp/evil")),
    "a missing file that nobody named": ("have", refused_traversal("f" * 64)),
    "missing files that are no list": ("have", says("have", {"missing": "all"})),
    "another manifest installed": ("install", says("install", changed(HONEST["install"], sha256="c" * 64))),
    "a release below one": ("install", sends("install", lambda n: result(n, {"release": -1}))),
    "releases that are no list": ("releases", says("releases", {"current": 1, "releases": {"1": RELEASE}})),
    "no releases at all": ("releases", says("releases", {})),
    "a release named by a text": ("releases", listed(release="1")),
    "a release without a manifest": ("releases", listed(manifest=...)),
    "a context below zero": ("releases", listed(manifest=changed(MANIFEST, context_length=-4))),
    "a file that climbs": (
        "releases",
        listed(manifest=changed(MANIFEST, files=[{"name": "tokenizer.json", "sha256": "../../../etc/x"}])),
    ),
    "tokens without end": ("generate", sends("generate", lambda n: event(n, {"token": 1}) * 5000)),
    "a previous release of NaN": ("activate", says("activate", {"previous": math.nan})),
    "bytes freed below zero": ("collect", says("collect", {"bytes_freed": -1})),
}  # fmt: skip


class Endless:
    """Says hello, then the same for ever."""

    def __init__(self, said: bytes, hello: bytes = HELLO) -> None:
        self._hello, self._said, self.total = hello, said, 0

    def send(self, data: bytes) -> None:
        pass

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        hello, self._hello = self._hello, b""
        if not hello:
            self.total += len(self._said)
        return hello or self._said

    def stderr_tail(self) -> str:
        return EVIL * 100

    def close(self) -> None:
        pass


STREAMS: dict[str, Endless] = {
    "noise before the hello": Endless(b"noise " * 40_000, hello=b"motd\n"),
    "noise after the hello": Endless(b"noise " * 40_000),
    "zeros": Endless(bytes(1 << 18)),
    "answers to nothing": Endless(encode_json(EVENT, 7, {"token": 1}) * 3000),
    "events of the right question": Endless(encode_json(EVENT, 1, {"done": 0, "share": 0.1}) * 3000),
    "errors": Endless(encode_json(ERROR, 0, {"kind": "failed", "message": EVIL}) * 1000),
    "the same hello": Endless(HELLO * 1000),
    "full frames": Endless(encode(DATA, 1, bytes(frames.MAX_PAYLOAD))),
}


def test_attacks_by_hand_are_refused_in_plain_words(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = Campaign("attacks", PROMISED_ATTACKS)
    campaign.share = 1.0  # they take moments
    monkeypatch.setattr(agent_link, "MAX_EVENTS", 20_000)
    monkeypatch.setattr(agent_link, "CANCEL_LIMIT_S", 0.5)
    monkeypatch.setattr(agent_link, "SILENCE_S", 1.0)
    for name, (op, answer) in ATTACKS.items():
        if wrong := judge(Liar(answer, stderr=EVIL), [USES[op]], bundle):
            campaign.fail(f"{name}: {wrong}")
        campaign.hit(op)
    tracemalloc.start()
    for name, stream in STREAMS.items():
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        if wrong := judge(stream, [use_facts], bundle):
            campaign.fail(f"endless {name}: {wrong}")
        if (grown := tracemalloc.get_traced_memory()[1] - before) > MEMORY_BYTES:
            campaign.fail(f"endless {name}: {grown >> 20} MiB of memory")
        campaign.hit("endless stream")
    tracemalloc.stop()
    naive = sum(naive_takes(*attack) for attack in ATTACKS.values())
    assert naive >= 10, "the negative control was not caught"
    campaign.facts = {"attacks": len(ATTACKS) + len(STREAMS), "naive_takes_of": [naive, len(ATTACKS)]}
    campaign.finish()


def naive_takes(op: str, answer: Answer) -> bool:
    """Say whether a reader that trusts the device takes a bad number or a text that steers."""
    found = frames.Decoder()
    try:
        value = json.loads(next(f for f in found.feed(answer(1, {"op": op})) if f.type == RESULT).payload)
        texts = json.dumps(value, ensure_ascii=False)
    except (StopIteration, ValueError, RecursionError, frames.FrameError):
        return False
    bad = any(word in texts for word in ("NaN", "Infinity", "-", "1e+308"))
    return bad or not texts.isprintable()


def test_an_honest_device_is_not_refused(bundle: Bundle) -> None:
    uses = [u for name, u in USES.items() if name not in ("have", "collect")]
    assert judge(Liar(honest), uses, bundle) is None
    device = liar.device(Liar(honest))
    use_measure(device, bundle)  # raises where anything is refused
    use_releases(device, bundle)
    use_generate(device, bundle)
    device.close()


# -- fuzzing --


def transcripts(bundle: Bundle) -> Iterator[bytes]:
    """Yield what an honest device says to all questions, as one stream each."""
    for op, value in HONEST.items():
        frame = honest(1, {"op": op, "manifest_sha256": "a" * 64})
        yield HELLO + PING_FRAME + event(1, {"done": 0, "of": 1, "share": 0.5, "token": 3}) * 2 + frame
        assert value


PING_FRAME = encode_json(PING, 0, {})


def mutated(campaign: Campaign, stream: bytes) -> bytes:
    """Damage a stream: bytes, whole values (with checksums that are right again), order, length."""
    draw, how = campaign.random, campaign.random.randrange(6)
    parts = frames.Decoder().feed(stream)
    if how == 0:  # bytes of the wire
        data = bytearray(stream)
        for _ in range(draw.randrange(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return bytes(data)
    if how == 1:
        at = draw.randrange(len(stream))
        return stream[:at] + draw.randbytes(draw.randrange(60)) + stream[at + draw.randrange(60) :]
    if how == 2:
        draw.shuffle(parts)
    rows = []
    for number, part in enumerate(parts):
        payload = part.payload
        if how >= 3 and number and draw.random() < 0.5:
            payload = _mutated_json(campaign, payload)
        kind = part.type if how != 4 or draw.random() < 0.8 else draw.choice(list(frames.TYPE_NAMES))
        rows.append(encode(kind, part.request if draw.random() < 0.9 else draw.randrange(4), payload))
    return b"".join(rows)


VALUES = [None, True, -1, 0, 1e308, 10**20, "", EVIL, [], {}, [None], {"a": {"b": [1]}}, math.nan, -0.0, "../../x"]


def _mutated_json(campaign: Campaign, payload: bytes) -> bytes:
    value = json.loads(payload)
    node, draw = value, campaign.random
    while isinstance(node, dict | list) and node:
        key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if draw.random() < 0.5 or not isinstance(node[key], dict | list) or not node[key]:
            if isinstance(node, dict) and draw.random() < 0.2:
                del node[key]
            else:
                node[key] = draw.choice(VALUES)
            break
        node = node[key]
    return json.dumps(value).encode("utf-8", "surrogatepass")[: frames.MAX_PAYLOAD]


class Recording:
    """A channel that plays a stream once, and then ends."""

    def __init__(self, stream: bytes) -> None:
        self._stream = stream

    def send(self, data: bytes) -> None:
        pass

    def recv(self, max_bytes: int, timeout_s: float) -> bytes:
        data, self._stream = self._stream, b""
        return data

    def stderr_tail(self) -> str:
        return EVIL

    def close(self) -> None:
        pass


def test_fuzzed_frames_end_in_a_value_or_in_plain_words(bundle: Bundle) -> None:
    campaign = Campaign("fuzz", PROMISED_FRAMES)
    honest_streams = list(zip(HONEST, transcripts(bundle), strict=True))
    wanted, total, refused, naive = campaign.portion(PROMISED_FRAMES), 0, 0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in itertools.count():
        if total >= wanted:
            break
        op, stream = honest_streams[number % len(honest_streams)]
        fuzzed = mutated(campaign, stream)
        whole = 5
        total += whole
        campaign.hit(op, whole)
        if number % 4 == 0:  # through the whole link, threads and all
            if wrong := judge(Recording(fuzzed), [USES.get(op, use_facts)], bundle):
                campaign.fail(f"{op}, stream {number}: {wrong}")
            continue
        answers, decoder = [], frames.Decoder(noise=frames.MAX_NOISE)
        try:
            for frame in decoder.feed(fuzzed):
                if frame.type == RESULT:
                    answers.append(frame.json())
        except frames.FrameError:
            refused += 1
        for answer in answers:
            wrong = judge(Liar(says(op, answer)), [USES.get(op, use_facts)], bundle) if number % 16 == 1 else None
            if wrong:
                campaign.fail(f"{op}, stream {number}: {wrong}")
            naive += "\\u001b" in json.dumps(answer)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY_BYTES:
        campaign.fail(f"{grown >> 20} MiB of memory")
    assert naive or campaign.share < 0.01, "the negative control was not caught"
    campaign.facts = {"streams": number, "refused_by_checksums": refused, "naive_would_have_shown_escapes": naive}
    campaign.finish()


# -- the whole command --


def test_no_control_byte_reaches_the_terminal(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from merino_edge.cli.main import main

    lies = changed(FACTS, os_image=EVIL, board_model="Raspberry Pi 4 Model B", governor=EVIL, device_id=EVIL + "id")
    monkeypatch.setattr(
        devices, "open_device", lambda entry, ask=None: liar.device(Liar(says("facts", lies), stderr=EVIL))
    )
    for words in (["devices", "add", "board", "--host", "pi@board"], ["devices", "add", "b2", "--host", "h", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    with pytest.raises(SystemExit):
        main(["generate", "x", "--device", "board"])
    said = capsys.readouterr()
    assert all(c.isprintable() or c == "\n" for c in said.out + said.err)


def test_text_of_the_model_does_not_steer_the_terminal() -> None:
    from merino_edge.cli.output import visible

    assert visible("a\x1b[2Jb\n\tc\u202e\u009b") == "a\ufffd[2Jb\n\tc\ufffd\ufffd"
