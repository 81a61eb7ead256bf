"""This machine as the device, through the same agent as a board: install, measure, generate, perplexity."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from merino_edge.architecture import Block
from merino_edge.bundle import Bundle, OutputCheck, write_manifest
from merino_edge.device.client import AgentDevice, Device, GenerateOptions, TestSpec, open_device
from merino_edge.device.registry import local_entry
from merino_edge.errors import DeployError, MeasurementError, ProtocolError, UsageError
from merino_edge.exporters.to_onnx import export
from merino_edge.exporting import ExportOptions
from merino_edge.flows.export import random_weights
from merino_edge.flows.export import write_bundle as write_run_bundle
from merino_edge.flows.measuring import with_synthetic_weights
from merino_edge.reference import forward, random_tensors
from merino_edge.testing import FakeDevice, tiny_architecture, write_bundle

ARCHITECTURE = tiny_architecture()
GREEDY = GenerateOptions(max_tokens=12, temperature=0)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("fp32"), export, ARCHITECTURE)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("int8"), export, ARCHITECTURE, "dynamic_wi8_afp32")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentDevice]:
    root = tmp_path_factory.mktemp("device") / "root"
    with open_device(dataclasses.replace(local_entry(), root=str(root))) as opened:
        yield opened


@pytest.fixture
def installed(device: AgentDevice, fp32: Bundle) -> AgentDevice:
    device.install(fp32)
    return device


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, ARCHITECTURE.vocab_size, count)]


def test_facts_name_the_machine(device: AgentDevice) -> None:
    facts = device.facts()
    assert len(facts["device_id"]) == 16
    assert facts["cpu"]["cores"] >= 1
    assert facts["python"]["bits"] in (32, 64)


def test_second_push_sends_nothing(device: AgentDevice, int8: Bundle) -> None:
    device.push(int8)
    again = device.push(int8)
    assert again.bytes_sent == 0
    assert again.bytes_total >= int8.manifest.file_bytes


def test_weights_of_a_measurement_are_made_on_the_device(device: AgentDevice, tmp_path: Path) -> None:
    for recipe in ("fp32", "dynamic_wi8_afp32", "weight_only_wi4_b32_afp32"):
        options = ExportOptions(context_length=64, parity=False)
        architecture = dataclasses.replace(ARCHITECTURE, blocks=(Block(64, 2, 2), Block(96, 1, 1)), embedding_width=64)
        weights = random_weights(architecture, 64)
        bundle = with_synthetic_weights(write_run_bundle(architecture, weights, tmp_path, "onnx", recipe, options))
        made = [f for f in bundle.manifest.files if f.name in bundle.layout]
        assert made
        pushed = device.push(bundle)
        assert pushed.bytes_sent == pushed.bytes_total - sum(f.bytes for f in made)
        assert device.push(bundle).bytes_sent == 0
        (timed,) = device.measure(bundle, [TestSpec("tg", 2, 4)], 1, 64, 0.1)
        assert min(timed.samples_ns) > 0


def test_more_threads_than_the_device_has_cores_are_refused(device: AgentDevice, int8: Bundle) -> None:
    device.push(int8)
    for threads in ((os.cpu_count() or 1) + 1, 1000):
        with pytest.raises(UsageError, match=f"{threads} threads are more than the device's") as caught:
            device.measure(int8, [TestSpec("tg", 2, 4)], threads, 64, 0.1)
        assert str(caught.value.hint).startswith("--threads ")


def test_install_switches_and_names_what_was_before(device: AgentDevice, fp32: Bundle, int8: Bundle) -> None:
    first, second = device.install(fp32), device.install(int8)
    assert second.previous == first.release
    current = device.current()
    assert current is not None
    assert (current["release"], current["manifest"]["recipe"]) == (second.release, "dynamic_wi8_afp32")
    assert current["trial"]["max_abs_diff"] <= int8.manifest.check.tolerance


def test_rollback_serves_the_earlier_release(device: AgentDevice, fp32: Bundle, int8: Bundle) -> None:
    first, second = device.install(fp32), device.install(int8)
    assert device.activate(first.release) == second.release
    current = device.current()
    assert current is not None
    assert current["release"] == first.release


def test_greedy_tokens_are_those_of_the_reference(installed: AgentDevice) -> None:
    prompt = tokens(150)
    ids = list(prompt)
    tensors = random_tensors(ARCHITECTURE, 0, scale=0.05)
    for _ in range(GREEDY.max_tokens):
        ids.append(int(np.argmax(forward(ARCHITECTURE, tensors, ids, [len(ids) - 1])[0])))
    assert list(installed.generate(prompt, GREEDY)) == ids[len(prompt) :]


def test_same_seed_gives_the_same_tokens_and_another_seed_others(installed: AgentDevice) -> None:
    texts = [list(installed.generate([1, 2, 3], GenerateOptions(20, 1.0, seed=s))) for s in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_stops_before_a_stop_token_and_tells_its_times(installed: AgentDevice) -> None:
    text = list(installed.generate([5], GREEDY))
    stop = text[3]
    stopped = list(installed.generate([5], dataclasses.replace(GREEDY, stop_ids=(stop,))))
    assert stopped == text[: text.index(stop)]
    times = installed.last_generation
    assert times is not None
    assert times["tokens"] == len(stopped)
    assert min(times["seconds"], times["load_ms"], times["prefill_ms"]) > 0


def test_closed_generation_leaves_the_device_ready(installed: AgentDevice) -> None:
    stream = installed.generate([1], GenerateOptions(max_tokens=250, temperature=1.0))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(list(installed.generate([1], GREEDY))) == GREEDY.max_tokens


def test_generation_ends_at_the_context(installed: AgentDevice) -> None:
    assert len(list(installed.generate(tokens(250), GenerateOptions(max_tokens=100)))) == 256 - 250 + 1


def test_weights_damaged_since_they_were_deployed_are_told_and_deploying_again_mends_them(
    fp32: Bundle, tmp_path: Path
) -> None:
    with open_device(dataclasses.replace(local_entry(), root=str(tmp_path / "root"))) as device:
        device.install(fp32)
        expected = list(device.generate([5], GREEDY))
        weights = tmp_path / "root/current/model.data"
        place, content = weights.stat().st_size // 2, weights.read_bytes()
        with weights.open("r+b") as stream:
            stream.seek(place)
            stream.write(bytes([content[place] ^ 1]))
        assert list(device.generate([5], GREEDY)), "the child that has the model open goes on"
    with open_device(dataclasses.replace(local_entry(), root=str(tmp_path / "root"))) as device:
        with pytest.raises(DeployError, match=r"model\.data of release 1 was damaged") as caught:
            list(device.generate([5], GREEDY))
        assert caught.value.hint == "deploy again"
        device.install(fp32)
        assert list(device.generate([5], GREEDY)) == expected


@pytest.mark.parametrize("prompt", [[], [999_999], [-1]])
def test_prompt_that_is_none_is_refused_in_words(installed: AgentDevice, prompt: list[int]) -> None:
    with pytest.raises(ProtocolError, match=r"prompt needs|token ids must"):
        list(installed.generate(prompt, GREEDY))


def test_perplexity_is_that_of_the_reference(device: AgentDevice, fp32: Bundle) -> None:
    text, context, expected = np.array(tokens(100)), 60, 0.0
    tensors = random_tensors(ARCHITECTURE, 0, scale=0.05)
    for start in (0, 60):
        window = text[start : min(start + context, 99)]
        logits = forward(ARCHITECTURE, tensors, window).astype(np.float64)
        mass = np.log(np.exp(logits).sum(axis=1))
        expected += float((mass - logits[np.arange(len(window)), text[start + 1 : start + 1 + len(window)]]).sum())
    found = device.perplexity(fp32, text, context)
    assert found.tokens == 99
    assert found.nll_nats_sum == pytest.approx(expected, rel=1e-4)


def test_measurement_keeps_raw_samples_and_memory(device: AgentDevice, fp32: Bundle) -> None:
    specs = [TestSpec("tg", 16, 32), TestSpec("pp", 64), TestSpec("full", 32)]
    seen: list[float] = []
    results = device.measure(
        fp32, specs, threads=1, context_length=256, budget_s=0.05, progress=lambda done, of: seen.append(done / of)
    )
    assert [r.spec for r in results] == specs
    assert [len(r.warmup_ns) for r in results] == [8, 1, 1]
    assert len(results[0].samples_ns) % 16 == 0
    assert min(len(r.samples_ns) for r in results) >= 5
    for result in results:
        assert result.threads == 1
        assert result.provider == "CPUExecutionProvider"
        cache = ARCHITECTURE.kv_cache_bytes(256)
        assert cache < result.model_memory_bytes < result.peak_memory_bytes
        assert result.valid == (result.invalid_reason is None)
        assert {"before", "after", "queued_share", "memory"} <= set(result.conditions)
    assert seen == sorted(seen)
    assert 0 <= seen[0] <= seen[-1] <= 1


def test_passes_that_are_asked_for_are_those_measured(device: AgentDevice, fp32: Bundle) -> None:
    specs = [TestSpec("tg", 4, 8, warmup=2, repeats=3), TestSpec("pp", 8, warmup=3, repeats=2)]
    found = device.measure(fp32, specs, threads=1, context_length=16, budget_s=60)
    taken = [len(r.samples_ns) + len(r.conditions["disturbed_ns"]) for r in found]  # others may disturb a pass
    assert ([len(r.warmup_ns) for r in found], taken) == ([8, 3], [12, 2])
    memory = found[0].conditions["memory"]
    assert memory["loaded"]["anonymous"] >= memory["empty_runtime"]["anonymous"] > 0


def test_what_is_held_stays_however_much_is_sent_after_it(fp32: Bundle, int8: Bundle, tmp_path: Path) -> None:
    def missing(holding: bool) -> int:
        root = tmp_path / f"holding-{holding}"
        with open_device(dataclasses.replace(local_entry(), root=str(root))) as device:
            device.holding = holding
            device.push(fp32)
            device.holding = False
            with (root / "objects" / ("0" * 64)).open("wb") as stream:
                stream.truncate(300 << 20)  # more than an agent keeps of what is only measured
            device.push(int8)
            return device.missing_bytes(fp32)

    assert missing(holding=True) == 0
    assert missing(holding=False) > 0


def test_measurement_does_not_touch_the_release_in_use(installed: AgentDevice, int8: Bundle) -> None:
    before = installed.current()
    installed.measure(int8, [TestSpec("pp", 8)], threads=1, context_length=16, budget_s=0.01)
    assert installed.current() == before


def test_interrupted_measurement_leaves_the_device_ready(device: AgentDevice, fp32: Bundle) -> None:
    def interrupt(done: float, of: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.measure(fp32, [TestSpec("tg", 64, 0)], budget_s=60, progress=interrupt)
    assert device.measure(fp32, [TestSpec("pp", 8)], threads=1, context_length=16, budget_s=0.01)


def test_bundle_that_answers_otherwise_is_refused_and_the_old_one_serves(
    installed: AgentDevice, fp32: Bundle, tmp_path: Path
) -> None:
    before = installed.current()
    check = fp32.manifest.check
    wrong = OutputCheck(check.token_ids, ((check.top[0][0], check.top[0][1] + 1), *check.top[1:]), check.tolerance)
    folder = tmp_path / "wrong"
    folder.mkdir()
    for f in fp32.manifest.files:
        (folder / f.name).write_bytes((fp32.folder / f.name).read_bytes())
    with pytest.raises(DeployError, match="answers differently on the device"):
        installed.install(write_manifest(folder, dataclasses.replace(fp32.manifest, check=wrong)))
    assert installed.current() == before


def test_bundle_with_a_flipped_bit_is_refused_and_the_old_one_serves(installed: AgentDevice, tmp_path: Path) -> None:
    before = installed.current()
    bundle = write_bundle(tmp_path, export, ARCHITECTURE, seed=5)
    weights = bundle.folder / bundle.manifest.files[-1].name
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(DeployError, match="not what its manifest says"):
        installed.install(bundle)
    assert installed.current() == before


def test_model_beyond_the_free_memory_is_never_loaded(device: AgentDevice, fp32: Bundle) -> None:
    with pytest.raises(MeasurementError, match="MiB are free"):
        device.measure(fp32, [TestSpec("pp", 8)], context_length=1 << 40)


def test_collect_frees_what_no_release_needs(device: AgentDevice, fp32: Bundle, tmp_path: Path) -> None:
    device.install(fp32)
    stray = write_bundle(tmp_path, export, ARCHITECTURE, seed=9)
    device.push(stray)
    assert device.collect(keep=1) >= stray.manifest.file_bytes
    assert len(device.releases()) == 1
    assert list(device.generate([1], GREEDY))


def test_unasked_tests_are_refused(device: AgentDevice, fp32: Bundle) -> None:
    with pytest.raises(UsageError, match="1 to 32 tests"):
        device.measure(fp32, [])


def test_fake_device_speaks_the_same_protocol(fp32: Bundle) -> None:
    fake: Device = FakeDevice()
    assert fake.install(fp32).bytes_sent == fake.push(fp32).bytes_total
    specs = [TestSpec("tg", 64, 128), TestSpec("pp", 128)]
    first, again = fake.measure(fp32, specs), fake.measure(fp32, specs)
    assert first == again
    assert first[0].samples_ns[1] < first[1].samples_ns[1]
    assert list(fake.generate([1], GREEDY)) == list(fake.generate([1], GREEDY))


def test_what_a_runtime_keeps_for_itself_stays_in_the_devices_folder(
    fp32: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with open_device(dataclasses.replace(local_entry(), root=str(tmp_path / "root"))) as device:
        device.measure(fp32, [TestSpec("tg", 2, 4)], 1, 64, 0.1)
    assert list(home.iterdir()) == []
