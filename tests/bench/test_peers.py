"""The comparison with peers: its statistics, its list, its workers, and the page made from its record."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merino_edge.exporters.recipes import RECIPES
from merino_edge.exporting import ExportOptions
from merino_edge.flows.export import Weights, write_bundle
from merino_edge.reference import forward, random_tensors
from merino_edge.testing import tiny_architecture

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from peers import contenders, environments, judging, page, running

DYNAMO, FAST = "A60: torch.onnx fp32", "A60: ours, ONNX int8 fast, head b128"


def rounds(ms: list[float]) -> list[list[int]]:
    return [[int(1e6 * value)] for value in ms]


def test_a_ratio_is_of_medians_and_lies_within_its_interval() -> None:
    found = judging.ratio(rounds([8, 9, 10, 11, 30]), rounds([2, 2, 2, 2, 2]))
    assert found["value"] == pytest.approx(5.0)
    assert found["low"] <= 5.0 <= found["high"] and found["low"] < found["high"]


def test_noise_that_both_feel_in_the_same_round_leaves_the_interval_narrow() -> None:
    noise = np.random.default_rng(1).uniform(1, 3, 15)
    found = judging.ratio(rounds(list(4 * noise)), rounds(list(noise)))
    assert found["high"] - found["low"] < 1e-5


def test_a_goal_within_the_interval_is_neither_reached_nor_missed() -> None:
    found = {"low": 3.0, "high": 4.0}
    assert [judging.verdict(found, goal) for goal in (3.0, 3.5, 4.1)] == ["ahead", "even", "short"]


def test_names_are_unique_and_goals_name_contenders_that_take_the_test() -> None:
    everybody = {c.name: c for c in contenders.contenders()}
    assert len(everybody) == len(contenders.contenders())
    for goal in contenders.goals():
        assert {goal.test} <= set(everybody[goal.ours].tests) & set(everybody[goal.peer].tests)
    for pairs in page.LIKE.values():
        assert set(pairs.values()) <= set(everybody)


def test_a_shared_matrix_is_read_at_every_use_and_the_table_once() -> None:
    a60 = contenders.models()["A60"]
    by_hand = 50257 * 512 + 512 * 640 + 640 * 768 + 768 * 1024 + 1024 * 512
    by_hand += sum(d * (4 + 2 * r) * w * w for w, r, d in ((512, 4, 3), (640, 4, 3), (768, 5, 4), (1024, 5, 4)))
    assert contenders.macs_per_token(a60) == by_hand


@pytest.mark.parametrize("recipe", sorted(set(contenders.STORED) & set(RECIPES)))
def test_a_model_without_sharing_reads_what_its_file_holds(recipe: str) -> None:
    gpt2 = contenders.models()["GPT-2-124M shape"]
    gains = 4 * sum(math.prod(shape) for name, shape in gpt2.tensor_shapes.items() if "norm" in name)
    assert contenders.weight_bytes(gpt2, *contenders.STORED[recipe]) == RECIPES[recipe].unique_bytes(gpt2) - gains


def test_every_contender_has_an_engine_and_an_environment() -> None:
    for contender in contenders.contenders():
        assert (running.WORKER.parent / f"engine_{contender.engine}.py").exists()
        assert contender.environment in {"project", *environments.ENVIRONMENTS}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    weights = Weights(random_tensors(tiny_architecture(), 0), 64)
    return write_bundle(tiny_architecture(), weights, tmp_path, "onnx", "fp32", ExportOptions(parity=False)).folder


def test_a_worker_times_what_it_is_asked_and_computes_the_model(bundle: Path, tmp_path: Path) -> None:
    architecture = tiny_architecture()
    contender = contenders.Contender("tiny", "", "project", "ours", "")
    live = running.Live(tmp_path, contender, str(bundle), 1, tmp_path / "log")
    try:
        assert len(live.ask(do="decode", depth=8, tokens=5)["ns"]) == 5
        assert len(live.ask(do="read", tokens=16, all=True)["ns"]) == 1
        ids = [1, 2, 3, 4, 5]
        live.ask(do="logits", ids=ids, path=str(tmp_path / "logits.npy"))
        reference = forward(architecture, random_tensors(architecture, 0), ids)[-1]
        assert judging.difference(np.load(tmp_path / "logits.npy"), reference) < 1e-4
        assert set(live.ask(do="memory")) == {"anonymous", "file", "peak"}
    finally:
        live.end()


def test_a_worker_that_cannot_load_says_why_and_nobody_else_is_disturbed(bundle: Path, tmp_path: Path) -> None:
    broken = contenders.Contender("broken", "", "project", "ours", "")
    sound = contenders.Contender("sound", "", "project", "ours", "")
    reasons: dict[str, str] = {}
    field = running.Field(tmp_path, 1, lambda _: None, reasons)
    try:
        field.open([(broken, str(tmp_path / "nothing")), (sound, str(bundle))])
        field.run("decode", 2, 3)
    finally:
        field.close()
    assert "nothing" in reasons["broken"] and set(field.samples) == {"sound"}
    assert [len(taken) for taken in field.samples["sound"]["decode"]["rounds"]] == [3, 3]


def test_the_reason_is_the_line_that_names_the_error() -> None:
    said = "Traceback\n  here\nValueError: model type `merino` is unknown\n\nUpdate with `pip install`\n"
    assert environments.complaint(said, "") == "ValueError: model type `merino` is unknown"
    assert environments.complaint("one\ntwo\n", "") == "two"
    assert environments.complaint("", "ended with 9") == "ended with 9"


def row(name: str, ms: float, **more: Any) -> dict[str, Any]:
    everybody = {c.name: c for c in contenders.contenders()}
    timed = {"warmup": [], "rounds": rounds([ms] * 6), "queued_ns": [0] * 6}
    held = {"anonymous": 80_000_000, "file": 40_000_000, "peak": 120_000_000}
    return {
        **everybody[name].to_json(),
        "file_bytes": 60_000_000,
        "load_ns": [50_000_000],
        "memory": {"loaded": held, "used": held},
        "bytes_read": None,
        "samples": {"1": {"decode": timed}, "2": {"decode": timed}},
        **more,
    }


def test_the_page_says_ratios_speeds_shares_and_reasons() -> None:
    read = row("memory read, 512 MB", 16.0, bytes_read=512_000_000)
    result = {
        "threads": [1, 2],
        "seconds": 60,
        "versions": {"torch": {"torch": "2.13.0"}},
        "not_measured": {"A60: optimum-onnx fp32": "unknown model type | merino"},
        "contenders": {DYNAMO: row(DYNAMO, 20.0), FAST: row(FAST, 5.0), "memory read, 512 MB": read},
    }
    machine = {"processor": "Chip", "cores": 2, "memory_bytes": 8 << 30}
    text = page.tables({"date": "2026-01-02", "commit": "abc", "machine": machine, "result": result})
    assert f"| {FAST} | {DYNAMO} | decode | 1 | 3.7 x | 4.00 (4.00-4.00) | ahead |" in text
    assert "| A60: optimum-onnx fp32 | unknown model type / merino |" in text
    assert f"| {FAST} | 60.0 | 50 | 80 / 40 / 120 | 80 | - | 200 | 200 | - | - | - | - |" in text
    assert f"| {FAST} | 145.0 | 91 % | 91 % |" in text  # 145.0 MB in 5 ms beside 32 GB/s
    assert "the machine was quiet" in text


def test_the_page_is_made_from_the_record() -> None:
    if not page.RECORD.exists():
        pytest.skip("nothing recorded yet")
    assert page.write(check=True) == 0
