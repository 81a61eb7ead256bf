"""Several models measured in turn on one device: each turn a fresh process, the order reversed every round.

What heats, slows or disturbs the machine for a while meets all of them alike, so that their ratios in one
round say more than their times. Rounds in which one of them was disturbed are set aside as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from merino_edge.bundle import Bundle
from merino_edge.device.client import Device, TestResult, TestSpec
from merino_edge.errors import MeasurementError
from merino_edge.flows.bench_rows import bundle_row
from merino_edge.flows.bench_tests import check_context, label_of
from merino_edge.flows.bench_torch import hub_row, measure_hub
from merino_edge.flows.ratios import FEWEST, Ratio, paired
from merino_edge.measurement import percentile_ms
from merino_edge.progress import SILENT, Progress

ROUNDS = 10
LEAST_TURN_S = 0.2

Row = dict[str, Any]
Take = Callable[[Sequence[TestSpec], "int | None", float], list[TestResult]]


@dataclass
class Turner:
    """A model that takes its turns.

    Attributes:
        name: What a table calls it.
        take: Measures it once: tests, context for the memory reading (None: its own; 1: no reading), seconds.
        row: Makes a row of what was found.
        rounds: What each turn gave.
    """

    name: str
    take: Take
    row: Callable[[TestResult], Row]
    rounds: list[list[TestResult]] = field(default_factory=list)

    def times_ms(self, test: int, kept: Sequence[int]) -> list[float]:
        """Return the median of a test in each of some rounds."""
        return [percentile_ms(self.rounds[number][test].samples_ns, 50) for number in kept]

    def pooled(self, test: int, kept: Sequence[int]) -> TestResult:
        """Return one result with the samples of some rounds, and memory as the first turn found it."""
        results = [self.rounds[number][test] for number in kept] or [turn[test] for turn in self.rounds]
        samples = tuple(sample for result in results for sample in result.samples_ns)
        reasons = [turn[test].invalid_reason for turn in self.rounds if not turn[test].valid]
        first = self.rounds[0][test]
        return replace(
            results[-1],
            samples_ns=samples,
            load_ns=first.load_ns,
            peak_memory_bytes=first.peak_memory_bytes,
            model_memory_bytes=first.model_memory_bytes,
            conditions={**results[-1].conditions, "memory": first.conditions.get("memory")},
            valid=bool(kept),
            invalid_reason=None if kept else next(iter(reasons), "no round in which nobody was disturbed"),
        )


def bundle_turner(
    name: str, bundle: Bundle, device: Device, device_name: str, facts: dict[str, Any], threads: int | None
) -> Turner:
    """Return a bundle as a model that takes turns; sent at once, and kept on the device meanwhile."""
    device.holding = True
    device.push(bundle)

    def take(tests: Sequence[TestSpec], context: int | None, seconds: float) -> list[TestResult]:
        check_context(tests, bundle.manifest.context_length, name)
        return device.measure(bundle, tests, threads, context or bundle.manifest.context_length, seconds, None)

    return Turner(name, take, lambda result: bundle_row(device_name, name, bundle, result, facts, {}))


def hub_turner(name: str, hub: str, threads: int | None) -> Turner:
    """Return a model of transformers, in torch on this machine, as one that takes turns."""
    answers: list[dict[str, Any]] = []

    def take(tests: Sequence[TestSpec], context: int | None, seconds: float) -> list[TestResult]:
        results, answer = measure_hub(hub, tests, threads, context, seconds)
        answers.append(answer)
        return results

    return Turner(name, take, lambda result: hub_row(name, result, answers[0], {}))


def take_turns(
    turners: Sequence[Turner],
    tests: Sequence[TestSpec],
    rounds: int,
    seconds: float,
    progress: Progress = SILENT,
) -> None:
    """Measure all of them, round after round; forwards and backwards by turns.

    Args:
        turners: Filled with what each turn gave.
        tests: Each turn runs all of them.
        rounds: How many turns each takes.
        seconds: For all turns of one model together.
        progress: Hears how far it is.
    """
    share = max(LEAST_TURN_S, seconds / rounds)
    with progress.task(f"measuring {len(turners)} models in turn", float(rounds * len(turners))) as task:
        done = 0
        for number in range(rounds):
            for turner in turners if number % 2 == 0 else reversed(turners):
                task.update(done, f"round {number + 1} of {rounds}: {turner.name}")
                turner.rounds.append(turner.take(tests, None if number == 0 else 1, share))
                done += 1
        task.update(done)


def undisturbed(turners: Sequence[Turner], test: int) -> list[int]:
    """Return the rounds in which nobody's measurement of a test was disturbed."""
    rounds = range(len(turners[0].rounds))
    return [number for number in rounds if all(t.rounds[number][test].valid for t in turners)]


def ratio(first: Turner, second: Turner, test: int, kept: Sequence[int]) -> Ratio:
    """Return how many times as long the first takes, by the rounds that count."""
    return paired(first.times_ms(test, kept), second.times_ms(test, kept))


def rows(turners: Sequence[Turner], tests: Sequence[TestSpec]) -> list[Row]:
    """Return a row for each model and test."""
    return [t.row(t.pooled(number, undisturbed(turners, number))) for t in turners for number in range(len(tests))]


def check_rounds(turners: Sequence[Turner], tests: Sequence[TestSpec], document: dict[str, Any]) -> None:
    """Raise where too few rounds of a test are undisturbed.

    Raises:
        MeasurementError: with the document in its details.
    """
    taken = len(turners[0].rounds)
    for number, spec in enumerate(tests):
        kept = undisturbed(turners, number)
        if len(kept) < min(FEWEST, taken):
            reasons = [t.rounds[n][number].invalid_reason for t in turners for n in range(taken)]
            reason = next(r for r in reasons if r)
            label = label_of(spec.test, spec.tokens, spec.depth)
            raise MeasurementError(
                f"{label}: {len(kept)} of {taken} rounds are valid: {reason}",
                hint="stop what else runs on the device, let it cool, and measure again",
                partial=document,
            )
