"""The HTTP interface, spoken to by OpenAI's own client over a real socket."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from merino_edge.bundle import TOKENIZER, BundleFile, read_bundle
from merino_edge.device.client import GenerateOptions
from merino_edge.device.registry import DeviceEntry, Registry
from merino_edge.errors import DeviceError, UsageError
from merino_edge.exporters.to_onnx import export
from merino_edge.exporting import ExportOptions
from merino_edge.files import sha256_file
from merino_edge.flows.chat import ChatTemplate, find_template, keep_template, read_template
from merino_edge.flows.completions import RequestError, parse_completion
from merino_edge.flows.deploy import keep_tokenizer, tokenizer_store
from merino_edge.flows.export import Weights
from merino_edge.flows.export import write_bundle as write_exported
from merino_edge.flows.generate import DeployedModel, Sampling, generate
from merino_edge.flows.serve import Worker, make_app, serve
from merino_edge.reference import random_tensors
from merino_edge.testing import FakeDevice, tiny_architecture, write_bundle

pytestmark = pytest.mark.alone

openai = pytest.importorskip("openai", reason="not installed: openai (pip install openai)")
uvicorn = pytest.importorskip("uvicorn", reason="not installed: uvicorn (pip install 'merino-edge[serve]')")

WORDS = 64


class Talker(FakeDevice):
    """Says word after word, seeded; may be slow, and may lose its cable."""

    pause_s = 0.0
    broken = False
    ended = 0

    def generate(self, token_ids: Sequence[int], options: GenerateOptions) -> Generator[int, None, None]:
        count, started = 0, time.monotonic()
        try:
            for count in range(1, options.max_tokens + 1):
                if self.broken:
                    raise DeviceError("the cable is out")
                time.sleep(self.pause_s)
                yield (options.seed + 7 * count + len(token_ids)) % WORDS
        finally:
            self.ended += 1
            seconds = max(1e-6, time.monotonic() - started)
            self.last_generation = {"tokens": count, "seconds": seconds, "load_ms": 1.0, "prefill_ms": 1.0}


@pytest.fixture
def talker(tmp_path: Path) -> Talker:
    from tokenizers import decoders, pre_tokenizers

    vocabulary = {f"Ġw{i}": i for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="Ġw0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path / TOKENIZER
    tokenizer.save(str(path))
    digest = sha256_file(path)
    store = tokenizer_store("local")
    store.mkdir(parents=True, exist_ok=True)
    (store / f"{digest}.json").write_bytes(path.read_bytes())
    device = Talker("local")
    bundle = write_bundle(tmp_path / "bundle", export, tiny_architecture(WORDS), context_length=128)
    device.install(bundle)
    files = (*bundle.manifest.files, BundleFile(TOKENIZER, digest, path.stat().st_size))
    trained = dataclasses.replace(bundle.manifest, trained=True, trained_tokens=1000, files=files)
    device._releases[0]["manifest"] = trained.to_json()
    return device


@contextlib.contextmanager
def running(device: Talker, waiting: int = 2) -> Iterator[str]:
    """Serve a device on a free port of this machine's loopback; yield the address."""
    worker = Worker(DeployedModel("local", device), waiting)
    server = uvicorn.Server(uvicorn.Config(make_app(worker), port=0, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        worker.stop()


@contextlib.contextmanager
def client(device: Talker, waiting: int = 2) -> Iterator[Any]:
    with running(device, waiting) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=20)


def status(address: str, path: str, body: bytes | None) -> int:
    """Return the HTTP status of a raw request."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body)
        return connection.getresponse().status


def test_the_model_is_listed_and_completes(talker: Talker) -> None:
    with client(talker) as api:
        (model,) = api.models.list().data
        done = api.completions.create(model=model.id, prompt="w1 w2", max_tokens=5, seed=3)
        assert api.models.retrieve(model.id).id == model.id == done.model == "local-release-1"
    assert done.choices[0].text.split() == [f"w{(3 + 7 * n + 2) % WORDS}" for n in range(1, 6)]
    assert done.choices[0].finish_reason == "length"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (2, 5, 7)


def test_a_stream_joins_to_the_whole_text_and_counts_at_its_end(talker: Talker) -> None:
    with client(talker) as api:
        whole = api.completions.create(model="local-release-1", prompt="w1", max_tokens=9, seed=1)
        chunks = list(
            api.completions.create(
                model="local-release-1",
                prompt="w1",
                max_tokens=9,
                seed=1,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 9
    assert len(chunks) > 3


def test_stop_echo_and_token_ids(talker: Talker) -> None:
    with client(talker) as api:
        ask = {"model": "local-release-1", "max_tokens": 6, "seed": 0}
        text = api.completions.create(prompt="w1", **ask).choices[0].text
        third = text.split()[2]
        stopped = api.completions.create(prompt="w1", stop=third, **ask).choices[0]
        assert third not in stopped.text.split()
        assert stopped.finish_reason == "stop"
        assert api.completions.create(prompt="w1", echo=True, **ask).choices[0].text == "w1" + text
        assert api.completions.create(prompt=[1], **ask).choices[0].text == text


def test_beyond_the_queue_the_answer_is_429_and_the_others_are_served(talker: Talker) -> None:
    talker.pause_s = 0.2
    with client(talker, waiting=1) as api:

        def ask() -> str:
            try:
                return str(api.completions.create(model="local-release-1", prompt="w1", max_tokens=4).object)
            except openai.RateLimitError as error:
                assert error.response.headers["retry-after"] == "1"
                return "429"

        answers: list[str] = []
        threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == ["429"] * 3 + ["text_completion"] * 2
        assert ask() == "text_completion"


def test_a_client_that_goes_away_frees_the_device(talker: Talker) -> None:
    talker.pause_s = 0.05
    with client(talker) as api:
        stream = api.completions.create(model="local-release-1", prompt="w1", max_tokens=100, stream=True)
        next(iter(stream))
        stream.close()
        begin = time.monotonic()
        done = api.completions.create(model="local-release-1", prompt="w1", max_tokens=1)
        assert done.usage.completion_tokens == 1
        assert time.monotonic() - begin < 4.0  # not the five seconds that the first would have taken
    assert talker.ended == 2


@pytest.mark.parametrize(
    ("others", "words", "command"),
    [
        ([], "nothing is deployed on local", "merino-edge deploy --device local"),
        (["pi4"], "local; pi4 has a model deployed from here", "merino-edge generate 'it'\"'\"'s w1' --device pi4"),
        (["pi4", "pi5"], "local; pi4 and pi5 have models", "merino-edge generate 'it'\"'\"'s w1' --device DEVICE"),
    ],
)
def test_where_nothing_is_deployed_the_command_for_the_device_that_has_something_is_named(
    others: list[str], words: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merino_edge.flows import devices

    for name in others:
        Registry().add(DeviceEntry(name, host="nobody@nowhere", board="pi4", root=None, transport="paramiko"))
        tokenizer_store(name).mkdir(parents=True)
        (tokenizer_store(name) / "0.json").write_text("{}")
    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: FakeDevice("local"))
    with pytest.raises(UsageError, match=words) as caught:
        generate("it's w1", None, Sampling(), lambda piece: None)
    assert caught.value.hint == command
    with pytest.raises(UsageError) as caught:
        serve(None, "127.0.0.1", 0, 1)
    assert str(caught.value.hint).startswith("merino-edge serve" if others else "merino-edge deploy")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_while_it_waits_costs_nothing_and_frees_its_place(stream: bool, talker: Talker) -> None:
    talker.pause_s = 0.1
    body = json.dumps({"prompt": "w1", "max_tokens": 1, "stream": stream}).encode()
    with running(talker, waiting=1) as address:
        api = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=20)
        first = api.completions.create(model="local-release-1", prompt="w1", max_tokens=60, stream=True)
        next(iter(first))  # six seconds of work
        gone = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
        gone.request("POST", "/v1/completions", body)
        time.sleep(0.3)
        assert status(address, "/v1/completions", body) == 429
        gone.close()
        begin = time.monotonic()
        while status(address, "/v1/completions", json.dumps({"prompt": ""}).encode()) == 429:
            assert time.monotonic() - begin < 4.0  # its place is free long before the first is done
            time.sleep(0.1)
        first.close()
    assert talker.ended == 2  # the first, and the one that was let in


def test_a_lost_device_is_503_and_the_server_lives_on(talker: Talker) -> None:
    with client(talker) as api:
        talker.broken = True
        with pytest.raises(openai.InternalServerError, match="cable is out") as caught:
            api.completions.create(model="local-release-1", prompt="w1")
        assert caught.value.status_code == 503
        talker.broken = False
        assert api.completions.create(model="local-release-1", prompt="w1").object == "text_completion"


def test_a_prompt_that_is_no_text_is_refused_and_the_server_lives_on(talker: Talker) -> None:
    with running(talker) as address:
        assert status(address, "/v1/completions", b'{"prompt": "\\ud800"}') == 400
        assert status(address, "/v1/completions", b'{"prompt": "w1"}') == 200


def test_a_mistake_of_ours_is_500_and_the_server_lives_on(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(talker) as api:
        with monkeypatch.context() as patch:
            patch.setattr(DeployedModel, "encode", lambda *_, **__: [])
            with pytest.raises(openai.InternalServerError, match="internal error") as caught:
                api.completions.create(model="local-release-1", prompt="w1")
        assert caught.value.status_code == 500
        assert api.completions.create(model="local-release-1", prompt="w1").object == "text_completion"


def test_what_is_asked_for_wrongly_is_told_in_the_clients_own_errors(talker: Talker) -> None:
    with client(talker) as api, running(talker) as address:
        with pytest.raises(openai.NotFoundError, match="local-release-1"):
            api.completions.create(model="gpt-4", prompt="w1")
        with pytest.raises(openai.NotFoundError, match="no chat template"):
            api.chat.completions.create(model="local-release-1", messages=[{"role": "user", "content": "w1"}])
        with pytest.raises(openai.BadRequestError, match="'n' is not supported"):
            api.completions.create(model="local-release-1", prompt="w1", n=2)
        with pytest.raises(openai.BadRequestError, match="beyond the vocabulary"):
            api.completions.create(model="local-release-1", prompt=[WORDS])
        with pytest.raises(openai.BadRequestError, match="the context holds 128"):
            api.completions.create(model="local-release-1", prompt=[1] * 128)
        assert status(address, "/v1/completions", b"{") == 400
        assert status(address, "/v1/completions", b" " * (2 << 20)) == 413
        assert status(address, "/v1/nothing", None) == 404


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "JSON object"),
        (b'{"promt": "x"}', "did you mean 'prompt'"),
        (b'{"prompt": 3}', "one text"),
        (b'{"prompt": ["a", "b"]}', "one text"),
        (b'{"prompt": "x", "max_tokens": 1.5}', "'max_tokens'"),
        (b'{"prompt": "x", "max_tokens": 0}', "max_tokens must be at least 1"),
        (b'{"prompt": "x", "temperature": NaN}', "'temperature'"),
        (b'{"prompt": "x", "temperature": -1}', "temperature"),
        (b'{"prompt": "x", "top_p": true}', "'top_p'"),
        (b'{"prompt": "x", "stream": "yes"}', "'stream'"),
        (b'{"prompt": "x", "stop": [1]}', "'stop'"),
        (b'{"prompt": "x", "stream_options": 1}', "'stream_options'"),
    ],
)
def test_a_body_that_means_nothing_is_refused_with_the_reason(body: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        parse_completion(body, "m")
    assert caught.value.status == 400


def test_a_taken_port_is_one_clear_line(talker: Talker, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from merino_edge.flows import devices

    monkeypatch.setattr(devices, "open_device", lambda entry, ask=None: talker)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot listen on"):
        serve("local", "127.0.0.1", taken.getsockname()[1], 1)


# -- conversations, where the tokenizer has a template --

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}"
    "{% endif %}{{ m.content }} w9 {% endfor %}{% if add_generation_prompt %}w8{% endif %}"
)


@pytest.fixture
def chatty(talker: Talker, tmp_path: Path) -> Talker:
    """Give the talker's tokenizer a template, as a checkpoint folder holds it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "Ġw7"}))
    store = tokenizer_store("local")
    (tokenizer,) = store.glob("*.json")
    keep_template(tokenizer.with_suffix(".chat"), find_template(folder))
    return talker


@pytest.mark.parametrize("form", ["standard", "unrolled"])
def test_the_template_of_a_checkpoint_travels_in_its_bundle(form: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, "w0")).save(str(checkpoint / TOKENIZER))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "w7"}))
    architecture = tiny_architecture(WORDS)
    weights = Weights(random_tensors(architecture, 0), 32, tokenizer=checkpoint / TOKENIZER)
    options = ExportOptions(context_length=32, parity=False, form=form)
    bundle = write_exported(architecture, weights, tmp_path / "export", "onnx", "fp32", options)
    assert read_bundle(bundle.folder).manifest.files == bundle.manifest.files
    assert [f.name for f in bundle.manifest.files].count("tokenizer_config.json") == 1
    assert find_template(bundle.folder) == ChatTemplate(TEMPLATE, find_template(bundle.folder).words)
    assert find_template(bundle.folder).words["eos_token"] == "w7"
    keep_tokenizer("pi4", bundle)
    (kept,) = tokenizer_store("pi4").glob("*.chat")
    assert read_template(kept) == find_template(bundle.folder)


def test_a_conversation_is_answered_in_the_tokenizers_template(chatty: Talker) -> None:
    messages = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
    with client(chatty) as api:
        done = api.chat.completions.create(model="local-release-1", messages=messages, max_tokens=5, seed=3)
        same = api.completions.create(model="local-release-1", prompt="w1 w9 w2 w3 w9 w8", max_tokens=5, seed=3)
        pieces = list(
            api.chat.completions.create(
                model="local-release-1", messages=messages, max_tokens=5, seed=3, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].message.content == same.choices[0].text
    assert done.choices[0].finish_reason == "length"
    assert done.usage.prompt_tokens == 6
    assert done.id.startswith("chatcmpl-")
    told = [p.choices[0].delta.content or "" for p in pieces if p.choices]
    assert "".join(told) == same.choices[0].text
    assert pieces[-1].usage.completion_tokens == 5


def test_a_conversation_ends_at_the_token_the_tokenizer_names(chatty: Talker) -> None:
    assert 7 in DeployedModel("local", chatty).ends


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": []}, "must be a list of messages"),
        ({"messages": [{"role": "robot", "content": "w1"}]}, "needs a 'role'"),
        ({"messages": [{"role": "user", "content": 3}]}, "must be text"),
        ({"messages": [{"role": "user", "content": "w1"}, {"role": "system", "content": "w1"}]}, "system comes first"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unknown key 'tools'"),
    ],
)
def test_a_conversation_that_makes_no_sense_is_refused_by_name(
    chatty: Talker, change: dict[str, Any], words: str
) -> None:
    asked = {"model": "local-release-1", "messages": [{"role": "user", "content": "w1"}], **change}
    with client(chatty) as api, pytest.raises(openai.BadRequestError, match=words):
        api.chat.completions.create(**asked)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% for",
        "{{ nothing.more }}",
    ],
)
def test_a_template_reaches_nothing_outside_its_conversation(template: str) -> None:
    with pytest.raises(UsageError, match="refuses this conversation"):
        ChatTemplate(template, {}).render([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": '{"eos_token": "</s>"}'}, None),
        ({"tokenizer_config.json": '{"chat_template": "a", "eos_token": {"content": "</s>"}}'}, "a"),
        ({"tokenizer_config.json": '{"chat_template": [{"name": "default", "template": "b"}]}'}, "b"),
        ({"tokenizer_config.json": '{"chat_template": "a"}', "chat_template.jinja": "c"}, "c"),
    ],
)
def test_a_template_is_found_as_hugging_face_writes_it(
    files: dict[str, str], expected: str | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = find_template(None, tmp_path)
    assert (found and found.text) == expected
    keep_template(tmp_path / "kept", found)
    assert read_template(tmp_path / "kept") == found
