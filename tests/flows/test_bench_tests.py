"""The grammar of tests: what is one, what is none, and that a label reads back as what it says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merino_edge.device.client import TestSpec
from merino_edge.errors import UsageError
from merino_edge.flows.bench_tests import check_context, check_passes, default_tests, label_of, parse_tests

NUMBERS = st.integers(1, 999_999)
SPECS = st.builds(TestSpec, st.sampled_from(("tg", "pp", "full")), NUMBERS, st.integers(0, 999_999))


def label(spec: TestSpec) -> str:
    return label_of(spec.test, spec.tokens, spec.depth)


@given(st.lists(SPECS, min_size=1, max_size=8, unique=True))
def test_labels_read_back_as_the_tests_they_name(specs: list[TestSpec]) -> None:
    assert parse_tests([",".join(map(label, specs))]) == tuple(specs)
    assert parse_tests(map(label, specs)) == tuple(specs)


@given(st.text(alphabet="ptgful0123456789@, -+.", max_size=12))
def test_whatever_is_typed_is_a_test_or_a_usage_error_that_shows_how(text: str) -> None:
    words = [word.strip() for word in text.split(",")]
    good = all(re.fullmatch(r"(tg([1-9]\d{0,5})?|(pp|full)[1-9]\d{0,5})(@(0|[1-9]\d{0,5}))?", word) for word in words)
    if good:
        assert [s.test for s in parse_tests([text])]
    else:
        with pytest.raises(UsageError) as caught:
            parse_tests([text])
        assert "pp128" in str(caught.value.hint)


def test_what_is_left_out_has_its_usual_value() -> None:
    assert parse_tests(["tg, tg16,tg@0", "pp512"]) == (
        TestSpec("tg", 64, 128),
        TestSpec("tg", 16, 128),
        TestSpec("tg", 64, 0),
        TestSpec("pp", 512, 0),
    )


def test_a_test_named_twice_is_run_once() -> None:
    assert len(parse_tests(["pp16,pp16", "pp16@0"])) == 1


def test_more_tests_than_a_request_carries_are_refused() -> None:
    with pytest.raises(UsageError, match="33 tests"):
        parse_tests([f"pp{n}" for n in range(1, 34)])


def test_a_test_longer_than_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"tg64@1000 needs 1064 tokens of context, small has 1024"):
        check_context(parse_tests(["tg64@1000"]), 1024, "small")


def test_more_passes_than_samples_are_kept_are_refused() -> None:
    check_passes(parse_tests(["tg64"]), 64)
    with pytest.raises(UsageError, match="at most --repeats 64"):
        check_passes(parse_tests(["tg64"]), 65)


@given(st.integers(2, 4096))
def test_default_tests_fit_any_context(context_length: int) -> None:
    check_context(default_tests(context_length), context_length, "model")
