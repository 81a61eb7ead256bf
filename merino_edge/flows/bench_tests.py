"""What a test is called on the command line of `bench`: `pp128`, `tg64@128`, `full1024`, several with commas.

ppN[@D]      ms to read a prompt of N tokens, after D tokens of context (0)
tg[N][@D]    ms per generated token, over N tokens (64), after D tokens of context (128)
fullN[@D]    as pp, with the logits of all positions
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import cast

from merino_edge.agent.measure import MAX_SAMPLES
from merino_edge.device.client import MAX_TESTS, TestSpec
from merino_edge.device.records import TestName
from merino_edge.errors import UsageError
from merino_edge.flows.conditions import DEFAULT_CONDITIONS, GENERATED_TOKENS, PROMPT_TOKENS

EXAMPLE = "write it like pp128, pp512@256, tg64@128 or full1024; several with commas"
_TEST = re.compile(r"(pp|tg|full)([1-9][0-9]{0,5})?(?:@(0|[1-9][0-9]{0,5}))?")


def parse_tests(words: Iterable[str]) -> tuple[TestSpec, ...]:
    """Read tests; each once, in the order in which they are first named.

    Args:
        words: Each one or several tests with commas between them.

    Raises:
        UsageError: one is no test, or there are too many.
    """
    names = [name.strip() for word in words for name in word.split(",")]
    found = tuple(dict.fromkeys(_parse(name) for name in names))
    if len(found) > MAX_TESTS:
        raise UsageError(f"{len(found)} tests are more than the {MAX_TESTS} that one measurement may have")
    return found


def _parse(name: str) -> TestSpec:
    match = _TEST.fullmatch(name)
    if match is None or (match[1] != "tg" and match[2] is None):
        raise UsageError(f"'{name}' is no test", hint=EXAMPLE)
    kind = cast("TestName", match[1])
    depth = DEFAULT_CONDITIONS.depth if kind == "tg" else 0
    return TestSpec(kind, int(match[2] or GENERATED_TOKENS), depth if match[3] is None else int(match[3]))


def label_of(test: str, tokens: int, depth: int) -> str:
    """Return the whole name of a test: `tg64@128`, `pp128`; a prompt's depth only where there is one."""
    kind = "tg" if test.startswith("tg") else "full" if test.startswith("full") else "pp"
    return f"{kind}{tokens}" + (f"@{depth}" if depth or kind == "tg" else "")


def check_passes(tests: Iterable[TestSpec], repeats: int | None) -> None:
    """Raise where so many repeats would be more samples than one test keeps."""
    for spec in tests:
        most = MAX_SAMPLES // (spec.tokens if spec.test == "tg" else 1)
        if repeats is not None and repeats > max(1, most):
            label = label_of(spec.test, spec.tokens, spec.depth)
            raise UsageError(f"{label} keeps {MAX_SAMPLES} samples: at most --repeats {max(1, most)}")


def default_tests(context_length: int) -> tuple[TestSpec, ...]:
    """Return the tests of a profile, cut down where the model's context is too short for them."""
    if context_length < 2:
        raise UsageError("a context of one token leaves nothing to generate")
    generated = min(GENERATED_TOKENS, context_length // 2)
    depth = min(DEFAULT_CONDITIONS.depth, context_length - generated)
    return (TestSpec("tg", generated, depth), TestSpec("pp", min(PROMPT_TOKENS, context_length), 0))


def check_context(tests: Iterable[TestSpec], context_length: int, name: str) -> None:
    """Raise where a test needs more positions than a model has."""
    for spec in tests:
        if spec.tokens + spec.depth > context_length:
            label = label_of(spec.test, spec.tokens, spec.depth)
            raise UsageError(
                f"{label} needs {spec.tokens + spec.depth} tokens of context, {name} has {context_length}",
                hint="leave that test out, or name shorter ones with --test",
            )
