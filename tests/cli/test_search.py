"""`merino-edge search` from its words to its document, on a board that is only estimated."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merino_edge import profile_device, search_architecture
from merino_edge.cli.main import main
from merino_edge.cli.profile import command as profile_command
from merino_edge.cli.search import command as search_command
from merino_edge.flows.conditions import DEFAULT_SPACE
from merino_edge.flows.profile import ProfileOptions
from merino_edge.flows.verify import SearchOptions
from merino_edge.search.cost import RECIPES

Search = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def search(capsys: pytest.CaptureFixture[str]) -> Search:
    """Run `search --device pi4 --json` in this process; return exit code and document."""

    def run(*args: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            main(["search", "--device", "pi4", "--no-verify", "--json", *args])
        return int(ended.value.code or 0), json.loads(capsys.readouterr().out)

    return run


LIMITS = {
    "latency_ms": ("--latency", "10ms", "0.1ms"),
    "memory_bytes": ("--memory", "160MB", "10MB"),
    "file_bytes": ("--file-size", "15MB", "1MB"),
    "parameters": ("--parameters", "15M", "1M"),
    "flops": ("--flops", "20G", "1G"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_alone_binds_and_is_kept(search: Search, name: str) -> None:
    flag, limit, _ = LIMITS[name]
    code, document = search(flag, limit)
    (constraint,) = document["constraints"]
    assert code == 0
    assert constraint["name"] == name
    assert constraint["binding"]
    assert 0.8 * constraint["limit"] < constraint["value"] <= constraint["limit"]


def test_where_no_limit_binds_the_larger_space_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for space in (("--space", "poster"), ()):
        with pytest.raises(SystemExit):
            main(["search", "--device", "pi4", "--no-verify", "--vocab", "8192", "--latency", "9s", *space])
        told.append(capsys.readouterr().out)
    assert "no limit binds: nothing in space poster scores better; --space free has more layers" in told[0]
    assert "has more layers" not in told[1]


def test_every_door_takes_the_same_space_where_none_is_named(search: Search) -> None:
    found = search("--parameters", "15M")[1]
    assert (found["space"], found["space_size"]) == (DEFAULT_SPACE, 74_446_099_728)
    named: list[list[Any]] = []
    for options, function, command in (
        (SearchOptions(), search_architecture, search_command),
        (ProfileOptions(), profile_device, profile_command),
    ):
        asked = [option.default for option in command.params if option.name == "space"]
        named.append([options.space, inspect.signature(function).parameters["space"].default, *asked])
    assert named == [3 * [None], 3 * [DEFAULT_SPACE]]


def test_a_search_that_takes_architectures_one_by_one_has_the_space_of_the_poster(search: Search) -> None:
    found = search("--mode", "evolution", "--evaluations", "50", "--parameters", "30M")[1]
    assert (found["mode"], found["space"]) == ("evolution", "poster")
    found = search("--mode", "evolution", "--space", "free", "--evaluations", "2000", "--flops", "15G")[1]
    assert (found["mode"], found["space"]) == ("evolution", "free")


def test_the_decoder_that_the_default_finds_is_beyond_the_space_of_the_poster(search: Search) -> None:
    limit = ("--flops", "45G", "--vocab", "8192")
    ours, poster = search(*limit)[1], search(*limit, "--space", "poster")[1]
    assert len(ours["architecture"]["blocks"]) > 4
    assert ours["score"] > poster["score"]


def test_the_embedding_skip_is_there_unless_it_is_left_out_and_changes_nothing_else(search: Search) -> None:
    found = {flag: search("--latency", "10ms", *([flag] if flag else []))[1] for flag in ("", "--no-embedding-skip")}
    ours, plain = found[""], found["--no-embedding-skip"]
    assert ours["architecture"] == {**plain["architecture"], "embedding_skip": True}
    assert ours["score"] == plain["score"]
    assert ours["flops"] == plain["flops"]
    assert ours["predicted"]["tg_ms"] == plain["predicted"]["tg_ms"]
    blocks = ours["architecture"]["blocks"]
    gains = sum(block["width"] * block["depth"] for block in blocks)
    assert ours["parameters"] == plain["parameters"] + gains
    assert ours["predicted"]["file_bytes"] == plain["predicted"]["file_bytes"] + 4 * gains


def test_an_embedding_skip_cannot_be_had_where_each_block_has_a_width_of_its_own(search: Search) -> None:
    code, document = search("--space", "wide", "--parameters", "20M", "--embedding-skip")
    assert (code, document["error"]["message"].startswith("space wide gives each block a width")) == (2, True)


@pytest.mark.parametrize("name", LIMITS)
def test_each_limit_out_of_reach_says_what_can_be_reached(search: Search, name: str) -> None:
    flag, _, limit = LIMITS[name]
    code, document = search(flag, limit)
    error = document["error"]
    assert code == 3
    assert error["binding"] == name
    assert error["least"] > error["limit"]
    assert error["feasible"] == 0
    assert error["nearest"]["values"][name] == error["least"]
    unit = {"latency_ms": "ms", "parameters": "", "flops": ""}.get(name, "B")
    assert search(flag, f"{error['least'] * 1.001}{unit}")[0] == 0


def test_limits_met_one_by_one_but_not_together_name_the_binding_one(search: Search) -> None:
    words = ("--parameters", "30M..40M", "--file-size", "12MB", "--flops", "60G")
    code, document = search(*words)
    assert code == 3
    assert document["error"]["binding"] in ("parameters", "file_bytes")
    assert "while the other limits hold" in document["error"]["message"]


@pytest.mark.parametrize("test", ["tg", "pp128", "pp64", "pp512", "ttft"])
def test_every_latency_can_be_limited(search: Search, test: str) -> None:
    code, document = search("--latency", {"tg": "8ms", "pp64": "60ms"}.get(test, "200ms"), "--latency-of", test)
    (constraint,) = document["constraints"]
    assert code == 0
    assert document["conditions"]["latency_of"] == test
    assert constraint["value"] == pytest.approx(document["predicted"][f"{test}_ms_upper"])
    assert constraint["value"] <= constraint["limit"]


def test_the_first_token_takes_the_prompt_and_one_token(search: Search) -> None:
    predicted = search("--latency", "200ms", "--latency-of", "ttft")[1]["predicted"]
    assert predicted["ttft_ms"] == pytest.approx(predicted["pp128_ms"] + predicted["tg_ms"])


def test_a_longer_prompt_takes_longer(search: Search) -> None:
    predicted = search("--parameters", "20M", "--latency-of", "pp512")[1]["predicted"]
    assert predicted["pp512_ms"] > 3.9 * predicted["pp128_ms"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_size_of_a_file_is_limited_under_every_recipe(search: Search, recipe: str) -> None:
    code, document = search("--recipe", recipe, "--file-size", "25MB")
    assert code == 0
    assert 20e6 < document["predicted"]["file_bytes"] <= 25e6


def test_a_recipe_of_blocks_leaves_out_what_blocks_do_not_divide(search: Search) -> None:
    document = search("--recipe", "weight_only_wi4_b128_afp32")[1]
    widths = [256, 384, 512, 640, 768, 896, 1024]
    assert document["space_size"] == len(widths) * sum(4**count for count in range(2, 17))
    widths = [256, 384, 512, 640, 768]
    document = search("--recipe", "weight_only_wi4_b128_afp32", "--space", "poster")[1]
    assert document["space_size"] == len(widths) * 12**4


def test_a_head_in_blocks_leaves_out_what_they_do_not_divide_and_no_more(search: Search) -> None:
    plain = search("--recipe", "dynamic_wi8_afp32", "--file-size", "25MB")[1]
    document = search("--recipe", "dynamic_wi8_head_b64_afp32", "--file-size", "25MB")[1]
    assert document["space_size"] == plain["space_size"]  # every width of this space is a multiple of 64
    assert search("--recipe", "dynamic_wi8_head_b128_afp32")[1]["space_size"] < plain["space_size"]


@pytest.mark.parametrize(
    ("device", "words"), [("pi4", "no power sensor"), ("jetson-nano", "its energy was not profiled")]
)
def test_energy_is_refused_with_the_reason(search: Search, device: str, words: str) -> None:
    code, document = search("--device", device, "--energy", "30mJ")
    assert code == 2
    assert words in document["error"]["message"]


BASE = 'schema_version = 1\nname = "mine"\nvocab_size = [300, 500]\nhead_dim = [16, 32]\n'
BLOCK = "[[block]]\ndepth = [1, 2]\nffn_ratio = [1, 0.5]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("width = [", "not valid TOML"),
        (BASE + "width = [64]\nheads = 4\n" + BLOCK, "unknown key 'heads'; did you mean 'head_dim'?"),
        (BASE + "width = []\n" + BLOCK, "'width' has no choice"),
        (BASE + "width = [100]\n" + BLOCK, "no head divides width 100"),
        (BASE + "width = [64, 64]\n" + BLOCK, "width 64 stands twice"),
        (BASE + 'width = "64"\n' + BLOCK, "must be whole numbers"),
        (BASE + "width = [999999999]\n" + BLOCK, "from 1 to 1048576"),
        (BASE + "width = [64]\n" + BLOCK.replace("[1, 0.5]", "[1, 1.0]"), "ffn_ratio 1.0 stands twice"),
        (
            BASE + f"width = {list(range(16, 16000, 16))}\n" + BLOCK.replace("[1, 2]", str(list(range(1, 999)))),
            "options",
        ),
        (BASE + "width = [64]\n", "at least one [[block]]"),
    ],
)
def test_a_space_that_is_none_is_a_wrong_call_with_the_reason(
    search: Search, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    code, document = search("--space", str(path))
    assert code == 2
    assert words in document["error"]["message"]
    assert document["error"]["hint"]


def test_a_space_keeps_its_own_choices_of_the_vocabulary(search: Search, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(BASE + "width = [64, 96]\n" + BLOCK, encoding="utf-8")
    code, document = search("--space", str(path), "--score", "minus-depth")
    assert code == 0
    assert document["space_size"] == 2 * 2 * 2 * 4
    assert document["conditions"]["vocab_size"] == document["architecture"]["vocab_size"] == 300
    assert search("--space", str(path), "--vocab", "400")[1]["architecture"]["vocab_size"] == 400


def test_a_score_that_needs_a_network_is_searched_by_evolution_and_counted(search: Search, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "mine.toml"
    path.write_text(BASE + "width = [64, 96, 128]\nembedding_width = 64\n" + BLOCK * 2, encoding="utf-8")
    words = ("--space", str(path), "--score", "synflow", "--evaluations", "12", "--parameters", "100k")
    code, document = search(*words)
    assert code == 0
    assert (document["mode"], document["evaluated"]) == ("evolution", 12)
    assert document["parameters"] <= 100_000
    code, document = search(*words, "--mode", "exact")
    assert code == 2
    assert "no sum over blocks" in document["error"]["message"]


def test_the_training_budget_sets_beta_and_is_stored(search: Search) -> None:
    for space, beta in ((("--space", "poster"), 0.44), ((), 0.17)):  # lower, to keep the deepest within the domain
        document = search("--score", "entropy", *space)[1]
        assert document["score_options"]["beta"] == beta
        assert document["conditions"]["train_tokens"] == 300_000_000
        assert document["expected_loss"] is None
        assert document["outside_domain"] == 0
    assert search("--score", "entropy", "--beta", "0.1")[1]["score_options"]["beta"] == 0.1


def test_the_loss_to_expect_is_told_where_the_study_looked(search: Search) -> None:
    loss = search("--vocab", "4096", "--train-tokens", "8M", "--flops", "30G")[1]["expected_loss"]
    assert loss["low"] < loss["nats_per_token"] < loss["high"]


def test_a_profile_names_a_search_of_what_was_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for asked in ((), ("--space", "poster", "--vocab", "8192", "--threads", "2")):
        with pytest.raises(SystemExit):
            main(["profile", "pi4", "--estimate", *asked])
        told.append(capsys.readouterr().err.splitlines()[-1])
    assert told[0].startswith("next: merino-edge search --device pi4 --latency ")
    assert told[0].endswith("ms")
    assert told[1].endswith("ms --space poster --vocab 8192 --threads 2")
