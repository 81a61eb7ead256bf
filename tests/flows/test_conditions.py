"""What a latency limit means is checked at the door and survives a file."""

from __future__ import annotations

import pytest

from merino_edge.errors import InvalidFileError, UsageError
from merino_edge.flows.conditions import Conditions


def test_conditions_come_back_from_json() -> None:
    conditions = Conditions(depth=64, recipe="fp32", threads=2)
    assert Conditions.from_json(conditions.to_json(), "here") == conditions


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidFileError, match="did you mean 'depth'"):
        Conditions.from_json({"dept": 3}, "here")


@pytest.mark.parametrize(
    "wrong", [{"latency_of": "pp0"}, {"depth": 0}, {"depth": 1000}, {"percentile": 100}, {"percentile": 0}]
)
def test_conditions_refuse_what_cannot_be_measured(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Conditions(**wrong)


def test_the_sentence_names_every_value_that_a_limit_depends_on() -> None:
    sentence = Conditions(depth=77, vocab_size=999, context_length=555, threads=3).sentence("kitchen")
    for part in ("kitchen", "77", "999", "555", "3 threads", "dynamic_wi8_afp32"):
        assert part in sentence
