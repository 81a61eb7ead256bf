"""Latency and memory models: what a fit recovers, what a file may say, and real measurements of a board."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import InfeasibleError, InvalidFileError, UsageError
from merino_edge.files import parse_json, write_json
from merino_edge.search.breakdown import latency_by_kind
from merino_edge.search.cost import unique_bytes
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.fitting import conformal_excess, fit_coefficients, judge, kendall_tau
from merino_edge.search.latency import (
    FEATURES,
    MISSED,
    LatencyModel,
    LatencySample,
    MemoryModel,
    MemorySample,
    choose_architectures,
    estimate_latency,
    estimate_memory,
    fit_latency,
    fit_memory,
    sample_lengths,
)
from merino_edge.search.memory import FEATURES as MEMORY_FEATURES
from merino_edge.search.memory import cache_copies
from merino_edge.search.scores import ScoreOptions
from merino_edge.search.space import load_space
from merino_edge.units import Limit

RECIPE = "dynamic_wi8_afp32"
POSTER = load_space("poster")
ESTIMATE = {
    "bandwidth_bytes_per_s": 4e9,
    "cache_bandwidth_bytes_per_s": 12e9,
    "fp32_macs_per_s": 16e9,
    "int8_macs_per_s": 24e9,
    "layer_overhead_ms": 0.1,
    "token_overhead_ms": 0.4,
    "runtime_memory_bytes": 60_000_000,
    "relative_error": 0.5,
    "source": "a test",
}
TRUTH = estimate_latency(ESTIMATE, test="tg", depth=128, recipe=RECIPE, cache_bytes=1 << 20)


def measured(noise: float, seed: int = 0, count: int = 25) -> list[LatencySample]:
    rng = np.random.default_rng(seed)
    chosen = choose_architectures(POSTER, count, seed=0)
    return [LatencySample(a, TRUTH.predict_ms(a) * float(np.exp(noise * rng.standard_normal()))) for a in chosen]


def fit(samples: list[LatencySample]) -> LatencyModel:
    return fit_latency(samples, test="tg", depth=128, recipe=RECIPE, cache_bytes=1 << 20)


def errors(model: LatencyModel) -> np.ndarray:
    return np.array([abs(model.predict_ms(a) / TRUTH.predict_ms(a) - 1) for a in POSTER.sample(200, seed=9)])


def test_a_fit_recovers_latency_from_25_models_with_two_percent_of_noise() -> None:
    assert errors(fit(measured(0.02))).mean() < 0.015


def test_one_disturbed_model_does_not_spoil_the_fit() -> None:
    samples = measured(0.01)
    samples[12] = LatencySample(samples[12].architecture, samples[12].ms * 3)
    assert errors(fit(samples)).mean() < 0.015


def test_the_band_covers_nine_tenths_of_unseen_models() -> None:
    covered = []
    for seed in range(8):
        model = fit(measured(0.05, seed))
        rng = np.random.default_rng(1000 + seed)
        for a in POSTER.sample(50, seed=seed):
            covered.append(TRUTH.predict_ms(a) * np.exp(0.05 * rng.standard_normal()) <= model.upper_ms(a))
    assert np.mean(covered) >= 0.88


def test_accuracy_is_that_of_left_out_models() -> None:
    accuracy = fit(measured(0.02)).accuracy
    assert accuracy["samples"] == 25
    assert 0.005 < accuracy["mape"] < 0.04
    assert accuracy["within_10pct"] == 1.0
    assert accuracy["kendall"] > 0.95


def test_an_estimate_says_so_and_carries_the_stated_error() -> None:
    a = POSTER.decode(0)
    assert TRUTH.estimate is True
    assert TRUTH.upper_ms(a) == TRUTH.predict_ms(a) * 1.5
    assert TRUTH.accuracy == {"samples": 0, "mape": None, "within_10pct": None, "kendall": None}


def test_second_uses_of_a_block_cost_streaming_only_where_it_exceeds_the_cache() -> None:
    small = estimate_latency(ESTIMATE, test="tg", depth=128, recipe=RECIPE, cache_bytes=0)
    large = estimate_latency(ESTIMATE, test="tg", depth=128, recipe=RECIPE, cache_bytes=1 << 30)
    once, thrice = POSTER.decode(0), POSTER.decode(8 * 12**3 + 8 * 12**2 + 8 * 12 + 8)
    assert thrice.depth == 3 * once.depth
    assert small.predict_ms(once) == large.predict_ms(once)
    assert small.predict_ms(thrice) > large.predict_ms(thrice)


@pytest.mark.parametrize("test", ["tg64", "pp128", "full1024"])
def test_every_word_for_a_test_can_be_estimated(test: str) -> None:
    model = estimate_latency(ESTIMATE, test=test, depth=0, recipe="fp32", cache_bytes=1 << 20)
    assert model.predict_ms(POSTER.decode(POSTER.size - 1)) > model.predict_ms(POSTER.decode(0)) > 0


@pytest.mark.parametrize("test", ["", "pp", "tg0", "xx5", "full"])
def test_a_word_for_no_test_is_refused(test: str) -> None:
    with pytest.raises(UsageError, match="is no test"):
        estimate_latency(ESTIMATE, test=test, depth=0, recipe="fp32", cache_bytes=1 << 20)


def test_too_few_models_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 3"):
        fit(measured(0.0)[:2])


def test_a_time_that_no_clock_gives_is_refused() -> None:
    with pytest.raises(UsageError, match="no time"):
        fit([*measured(0.0)[:4], LatencySample(POSTER.decode(0), 0.0)])


def test_what_does_not_stay_in_the_cache_is_found_and_counted() -> None:
    cache = 32 << 20
    truth = replace(
        estimate_latency(ESTIMATE, test="tg", depth=128, recipe=RECIPE, cache_bytes=cache), share_bytes=cache // 12
    )
    at = FEATURES.index("weight_bytes_evicted")
    truth = replace(truth, coefficients=(*truth.coefficients[:at], 2e-6, *truth.coefficients[at + 1 :]))
    rng = np.random.default_rng(4)
    samples = [
        LatencySample(a, truth.predict_ms(a) * float(np.exp(0.01 * rng.standard_normal())))
        for a in choose_architectures(POSTER, 25, seed=0)
    ]

    def wrong(model: LatencyModel) -> float:
        others = POSTER.sample(200, seed=9)
        return float(np.mean([abs(model.predict_ms(a) / truth.predict_ms(a) - 1) for a in others]))

    found = fit_latency(samples, test="tg", depth=128, recipe=RECIPE, cache_bytes=cache)
    without = fit_latency(samples, test="tg", depth=128, recipe=RECIPE, cache_bytes=0)
    assert found.share_bytes is not None and without.share_bytes is None
    assert wrong(found) < 0.02 < wrong(without)


def test_a_file_from_before_evictions_were_counted_still_loads() -> None:
    document = TRUTH.to_json()
    del document["kept_bytes"], document["kv_room"]
    del document["ms_per_unit"]["weight_bytes_missed"], document["ms_per_unit"]["kv_bytes_missed"]
    assert LatencyModel.from_json(document, "m") == TRUTH
    del document["share_bytes"], document["ms_per_unit"]["weight_bytes_evicted"]
    assert LatencyModel.from_json(document, "m") == TRUTH


def too_large_for_the_cache() -> LatencyModel:
    """Return a model by which what passes 16 MiB is read from memory: weights at 50 GB/s, keys and values at 25."""
    made = estimate_latency(ESTIMATE, test="tg", depth=128, recipe=RECIPE, cache_bytes=32 << 20)
    return replace(made, kept_bytes=16 << 20, coefficients=(*made.coefficients[:MISSED], 2e-5, 4e-5))


def test_what_a_model_reads_beyond_the_cache_is_counted_as_a_whole() -> None:
    made = too_large_for_the_cache()
    plain = replace(made, kept_bytes=None)
    small, large = (Architecture((Block(512, 4, 1),) * count, 512, 256) for count in (2, 12))
    positions = 128 + 32  # the median of 64 tokens
    weights, kv = unique_bytes(large, RECIPE), 12 * 2 * positions * 512 * 4
    missed = 1 - (16 << 20) / (weights + 2 * kv)
    assert 0 < missed < 1 and unique_bytes(small, RECIPE) + 2 * kv / 6 < 16 << 20
    assert made.predict_ms(small) == plain.predict_ms(small)
    assert made.missed_ms_of(large) == pytest.approx((2e-5 * missed * weights, 4e-5 * missed * kv))
    assert made.predict_ms(large) - plain.predict_ms(large) == pytest.approx(sum(made.missed_ms_of(large)))
    assert sum(latency_by_kind(made, large).values()) == pytest.approx(made.predict_ms(large), rel=1e-6)


def test_a_file_from_before_keys_and_values_took_room_predicts_as_it_did() -> None:
    made = too_large_for_the_cache()
    document = made.to_json()
    del document["kv_room"], document["ms_per_unit"]["kv_bytes_missed"]
    document["ms_per_unit"]["model_bytes_evicted"] = document["ms_per_unit"].pop("weight_bytes_missed")
    old = LatencyModel.from_json(document, "m")
    large = Architecture((Block(512, 4, 1),) * 12, 512, 256)
    assert sum(old.missed_ms_of(large)) == pytest.approx(2e-5 * (unique_bytes(large, RECIPE) - (16 << 20)))
    assert LatencyModel.from_json(old.to_json(), "m") == old


@pytest.mark.parametrize("mode", ["exact", "dp", "evolution"])
def test_a_search_predicts_what_the_model_predicts(mode: str) -> None:
    made = too_large_for_the_cache()
    space = load_space("poster" if mode == "evolution" else "free", 8192)
    limits = {"latency_ms": Limit(30.0)}
    score = ScoreOptions("balanced-parameters")
    found = search(SearchRequest(space, score=score, limits=limits, latency={"tg": made}, mode=mode))
    best = found.winner.architecture
    assert found.winner.predicted["tg_ms"] == made.predict_ms(best)
    assert found.constraints[0]["value"] == made.upper_ms(best) <= 30.0
    assert made.predict_ms(best) > replace(made, kept_bytes=None).predict_ms(best)


def test_limits_that_nothing_meets_are_told_where_a_latency_is_no_sum() -> None:
    limits = {"latency_ms": Limit(1.0)}
    request = SearchRequest(load_space("wide"), limits=limits, latency={"tg": too_large_for_the_cache()})
    with pytest.raises(InfeasibleError, match="latency_ms"):
        search(request)


def test_a_model_too_large_for_the_cache_is_found_in_its_times() -> None:
    truth, space = too_large_for_the_cache(), load_space("free", 8192)
    rng = np.random.default_rng(4)
    samples = [
        LatencySample(a, truth.predict_ms(a) * float(np.exp(0.01 * rng.standard_normal())))
        for a in choose_architectures(space, 25, seed=0)
    ]
    found = fit_latency(samples, test="tg", depth=128, recipe=RECIPE, cache_bytes=32 << 20)
    errors = [abs(found.predict_ms(a) / truth.predict_ms(a) - 1) for a in sample_lengths(space, 100, seed=9)]
    assert found.kept_bytes == 16 << 20
    assert float(np.mean(errors)) < 0.02


def test_models_of_any_number_of_blocks_are_drawn_alike() -> None:
    space = load_space("free")
    drawn = sample_lengths(space, 600, seed=1)
    counts = Counter(len(a.blocks) for a in drawn)
    assert len({a.digest for a in drawn}) == 600
    assert set(counts) == set(range(2, 17))
    assert max(counts.values()) < 80 and min(counts.values()) > 15


def test_a_model_survives_a_file_unchanged(tmp_path: Path) -> None:
    model = fit(measured(0.02))
    write_json(tmp_path / "m.json", model.to_json())
    document = parse_json((tmp_path / "m.json").read_text(), "m")
    document.pop("schema_version")
    assert LatencyModel.from_json(document, "m") == model


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tset": 1}, "unknown key 'tset'; did you mean 'test'"),
        ({"band": -0.1}, "band must be a number of at least 0"),
        ({"ms_per_unit": {"layers": 1.0}}, "must name exactly"),
        ({"depth": -1}, "depth must be a whole number"),
        ({"share_bytes": -1}, "share_bytes must be a whole number"),
        ({"estimate": "yes"}, "'estimate' must be true or false"),
        ({"ms_per_unit": {**dict.fromkeys(FEATURES, 1.0), "layers": -1.0}}, "layers must be a number"),
    ],
)
def test_a_file_that_is_no_latency_model_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        LatencyModel.from_json({**TRUTH.to_json(), **change}, "profile.json")
    assert reason in caught.value.message


def test_chosen_models_are_different_repeatable_and_span_the_space() -> None:
    chosen = choose_architectures(POSTER, 12, seed=0)
    assert len(set(chosen)) == 12
    assert chosen == choose_architectures(POSTER, 12, seed=0)
    assert (chosen[0], chosen[-1]) == (POSTER.decode(0), POSTER.decode(POSTER.size - 1))
    assert len({a.blocks[0].width for a in chosen}) >= 5


def test_choosing_works_where_the_space_is_smaller_than_asked() -> None:
    assert len(choose_architectures(load_space("wide", vocab_size=64), 3, seed=1)) == 3


@pytest.mark.parametrize("count", [1, 2, 6])
def test_memory_is_fitted_from_few_or_many_models(count: int) -> None:
    truth = estimate_memory(ESTIMATE, recipe=RECIPE, context_length=1024)
    chosen = choose_architectures(POSTER, count + 1, seed=0)[1:]
    samples = [MemorySample(a, round(truth.predict_bytes(a))) for a in chosen]
    model = fit_memory(samples, recipe=RECIPE, context_length=1024, runtime_bytes=60_000_000)
    for a in POSTER.sample(20, seed=2):
        assert model.predict_bytes(a) == pytest.approx(truth.predict_bytes(a), rel=0.02)
    assert MemoryModel.from_json(model.to_json(), "m") == model


SHAPES = (  # width, then (ratio, depth) of each block
    (256, (1, 1), (1, 1), (1, 1), (1, 1)),
    (256, (4, 3), (4, 3), (4, 3), (4, 3)),
    (512, (4, 1), (4, 3), (2, 1), (4, 3)),
    (768, (1, 1), (1, 1), (1, 1), (1, 1)),
    (768, (4, 3), (4, 3), (4, 3), (4, 3)),
)
# Peaks of the measuring process on x86-64, onnxruntime 1.32, vocabulary 8,192, a cache of 1,024 positions.
MEASURED_PEAKS = {
    "fast": (94_556_160, 117_633_024, 156_717_056, 143_687_680, 237_248_512),
    "legacy": (118_206_464, 160_956_416, 254_971_904, 252_026_880, 351_883_264),
}
EMPTY_RUNTIME = 68_980_000


def peaks(form: str) -> list[MemorySample]:
    return [
        MemorySample(Architecture(tuple(Block(width, *block) for block in blocks), width, 8192), peak)
        for (width, *blocks), peak in zip(SHAPES, MEASURED_PEAKS[form], strict=True)
    ]


def fitted_peaks(samples: list[MemorySample], copies: int = 2) -> MemoryModel:
    return fit_memory(samples, recipe=RECIPE, context_length=1024, runtime_bytes=EMPTY_RUNTIME, copies=copies)


@pytest.mark.parametrize(("form", "copies"), [("fast", 1), ("legacy", 2)])
def test_the_prior_counts_the_cache_as_often_as_measured_bytes_show(form: str, copies: int) -> None:
    assert cache_copies("onnx", form) == copies
    held = dict(zip(MEMORY_FEATURES, fitted_peaks(peaks(form)).coefficients, strict=True))["kv_bytes"]
    assert held == pytest.approx(copies, abs=0.25)


def test_four_measured_peaks_of_a_form_that_holds_the_cache_once_predict_a_fifth() -> None:
    def error(copies: int) -> float:
        samples, errors = peaks("fast"), []
        for left_out in samples:
            model = fitted_peaks([s for s in samples if s is not left_out], copies)
            errors.append(abs(model.predict_bytes(left_out.architecture) / left_out.peak_bytes - 1))
        return float(np.mean(errors))

    assert error(copies=1) < 0.05 < error(copies=2)


def test_few_samples_scale_the_prior_with_the_cache_once() -> None:
    two = fitted_peaks(peaks("fast")[:2], copies=1).coefficients
    assert two[0] == two[1] == two[2]


def test_memory_grows_with_the_context() -> None:
    a = POSTER.decode(5)
    short, long = (estimate_memory(ESTIMATE, recipe=RECIPE, context_length=n) for n in (128, 1024))
    assert long.predict_bytes(a) - short.predict_bytes(a) == 2 * a.kv_cache_bytes(1024 - 128)


def test_a_file_that_is_no_memory_model_is_refused() -> None:
    document = estimate_memory(ESTIMATE, recipe=RECIPE, context_length=8).to_json()
    with pytest.raises(InvalidFileError, match="context_length must be a whole number"):
        MemoryModel.from_json({**document, "context_length": 0}, "m")


def test_coefficients_are_never_negative() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((30, 4))
    target = features @ np.array([1.0, 0.0, 2.0, -0.5]) + 0.6
    assert (fit_coefficients(features, target) >= 0).all()


def test_conformal_excess_is_the_rank_that_theory_asks_for() -> None:
    predicted = np.ones(19)
    measured_values = 1 + np.arange(-9, 10) / 100
    assert conformal_excess(predicted, measured_values, 0.9) == pytest.approx(0.08)  # the 18th of 19


def test_kendall_of_equal_and_opposite_orders() -> None:
    x = np.arange(10.0)
    assert (kendall_tau(x, x), kendall_tau(x, -x), kendall_tau(x, np.ones(10))) == (1.0, -1.0, None)


def test_25_models_of_a_real_raspberry_pi_predict_the_others_within_one_percent(data_folder: Path) -> None:
    with open(data_folder / "hat" / "wmt14enfr_cpu_raspberrypi_all.csv") as stream:
        rows = list(csv.DictReader(stream))
    latency = np.array([float(r["latency_mean_encoder"]) + float(r["latency_mean_decoder"]) for r in rows])
    e, n, f = (
        np.array([float(r[k]) for r in rows])
        for k in ("decoder_embed_dim", "decoder_layer_num", "decoder_ffn_embed_dim_avg")
    )
    ee, ef, eh = (
        np.array([float(r[k]) for r in rows])
        for k in ("encoder_embed_dim", "encoder_ffn_embed_dim_avg", "encoder_self_attention_heads_avg")
    )
    h, x, a = (
        np.array([float(r[k]) for r in rows])
        for k in (
            "decoder_self_attention_heads_avg",
            "decoder_ende_attention_heads_avg",
            "decoder_arbitrary_ende_attn_avg",
        )
    )
    features = np.stack([ee, ee * ef, eh, n * e, n * e * f, n, n * h, n * x, n * a * ee, e, np.ones_like(e)], 1)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(latency))
        known, unseen = order[:25], order[25:]
        predicted = features[unseen] @ fit_coefficients(features[known], latency[known])
        accuracy = judge(predicted[:400], latency[unseen][:400])
        assert accuracy.mape is not None and accuracy.mape < 0.012
        assert accuracy.within_10pct is not None and accuracy.within_10pct >= 0.99
