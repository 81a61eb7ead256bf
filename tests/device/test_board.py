"""Boards: every shipped file reads, and no damage to one goes unnoticed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.device.board import (
    ESTIMATE_KEYS,
    board_names,
    detect_board,
    load_board,
    parse_board,
    slow_here,
    toml_string,
)
from merino_edge.device.board import parse_toml as parse
from merino_edge.errors import InvalidFileError, MerinoEdgeError, UsageError

GOOD = """
schema_version = 1
name = "toy"
title = "Toy board"
[match]
device_tree_model = "Toy"
[cpu]
core = "Cortex-A72"
cores = 4
performance_cores = 2
instruction_sets = ["neon"]
last_level_cache_bytes = 1_048_576
[memory]
ram_bytes = 1_000_000_000
[prefer]
bundles = ["onnx/fp32"]
[sensors]
energy = false
energy_reason = "none"
[estimate]
bandwidth_bytes_per_s = 4.0e9
cache_bandwidth_bytes_per_s = 12.0e9
fp32_macs_per_s = 16.0e9
int8_macs_per_s = 24.0e9
layer_overhead_ms = 0.1
token_overhead_ms = 0.4
runtime_memory_bytes = 60_000_000
relative_error = 0.5
source = "made up"
"""


@pytest.mark.parametrize("name", board_names())
def test_every_shipped_board_reads(name: str) -> None:
    board = load_board(name)
    assert board.name == name
    assert set(board.estimate) == set(ESTIMATE_KEYS)
    assert "measured" in board.estimate_source


@pytest.mark.parametrize("name", board_names())
def test_every_shipped_estimate_is_plausible(name: str) -> None:
    board = load_board(name)
    assert 1e9 <= board.estimate["bandwidth_bytes_per_s"] < board.estimate["cache_bandwidth_bytes_per_s"] <= 1e11
    assert 0.3 <= board.estimate["relative_error"] < 1


def test_the_named_boards_are_shipped() -> None:
    assert {"local", "pi-zero-2w", "pi3", "pi4", "pi5", "jetson-nano", "jetson-orin-nano"} <= set(board_names())


def test_a_good_board_keeps_its_values() -> None:
    board = parse_board(GOOD, "toy")
    assert (board.cpu.performance_cores, board.prefer, board.estimate["layer_overhead_ms"]) == (2, ("onnx/fp32",), 0.1)
    assert board.sensors.energy_reason == "none"


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("ram_bytes", "ram_gb", "did you mean 'ram_bytes'"),
        ("[memory]", "[memoir]", "did you mean 'memory'"),
        ("cores = 4\n", "", "'cores' is missing"),
        ("cores = 4\n", "cores = true\n", "cores must be"),
        ("cores = 4\n", "cores = 1\n", "performance_cores cannot exceed"),
        ("relative_error = 0.5", "relative_error = nan", "relative_error must be"),
        ("relative_error = 0.5", "relative_error = inf", "relative_error must be"),
        ("fp32_macs_per_s = 16.0e9", "fp32_macs_per_s = -1.0", "fp32_macs_per_s must be"),
        ("fp32_macs_per_s = 16.0e9", "fp32_macs_per_s = 0", "fp32_macs_per_s must be"),
        ("ram_bytes = 1_000_000_000", "ram_bytes = 1.5", "ram_bytes must be"),
        ("schema_version = 1", "schema_version = 2", "schema_version"),
        ('name = "toy"', 'name = "tiy"', "name must be 'toy'"),
        ("energy_reason", "energy_sensor", "contradicts"),
        ('["onnx/fp32"]', '"onnx/fp32"', "list of texts"),
        ('title = "Toy board"', 'title = "Toy board"\nprefer = 3', "prefer must be a table"),
        ("[cpu]", "[cpu", "not valid TOML"),
    ],
)
def test_a_damaged_board_is_refused_by_name(old: str, new: str, word: str) -> None:
    text = GOOD.replace(old, new, 1)
    if "prefer = 3" in new:
        text = text.replace('[prefer]\nbundles = ["onnx/fp32"]\n', "")
    with pytest.raises(InvalidFileError) as caught:
        parse_board(text, "toy")
    assert "toy.toml" in caught.value.message
    assert word in caught.value.message


@given(st.integers(0, len(GOOD) - 1), st.text(max_size=3))
def test_no_edit_of_a_board_ends_in_a_traceback(position: int, inserted: str) -> None:
    with contextlib.suppress(MerinoEdgeError):
        parse_board(GOOD[:position] + inserted + GOOD[position + 1 :], "toy")


@given(st.text(st.characters(exclude_categories=("C", "Z"))))
def test_a_quoted_text_reads_back(text: str) -> None:
    assert parse(f"x = {toml_string(text)}", "here")["x"] == text


def test_an_unknown_board_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'pi4'"):
        load_board("pi44")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi 4 Model B Rev 1.5", "pi4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "pi5"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "pi-zero-2w"),
        ("NVIDIA Jetson Nano Developer Kit", "jetson-nano"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson-orin-nano"),
        ("Raspberry Pi Model B Rev 2", None),
        ("linux,dummy-virt", None),
        ("", None),
        (None, None),
        (42, None),
    ],
)
def test_a_board_is_recognised_by_its_device_tree(model: object, name: str | None) -> None:
    assert detect_board({"board_model": model}) == name


@pytest.mark.parametrize(
    ("flags", "board", "good"),
    [
        (["asimd", "asimddp"], "pi5", True),
        (["asimd"], "pi4", False),
        (["asimd", "asimddp"], "pi4", True),  # the device beats the table
        (["asimd"], "pi5", False),
        ([], "pi4", False),
        ([], "pi5", True),
        ([], "local", True),
    ],
)
def test_8_bit_blocks_are_a_bad_choice_without_the_dot_product_of_the_device_itself(
    flags: list[str], board: str, good: bool
) -> None:
    facts = {"architecture": "aarch64", "cpu": {"flags": flags, "model": "Cortex-X"}}
    reason = slow_here("onnx", "weight_only_wi8_b32_afp32", facts, load_board(board))
    assert (reason is None) is good
    for recipe in ("fp32", "dynamic_wi8_afp32", "weight_only_wi4_b128_afp32"):
        assert slow_here("onnx", recipe, facts, load_board(board)) is None


@pytest.mark.parametrize("name", board_names())
def test_no_board_prefers_what_is_slow_on_it(name: str) -> None:
    board = load_board(name)
    assert [wish for wish in board.prefer if slow_here(*wish.split("/"), None, board)] == []
