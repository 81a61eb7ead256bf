"""`merino-edge bench`."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from merino_edge.cli.options import SECONDS, SHARE, ask_person, json_option
from merino_edge.cli.output import terminal_progress
from merino_edge.errors import MerinoEdgeError, UsageError

OUTPUTS = ("table", "markdown", "csv", "json", "jsonl")


@click.command("bench")
@click.argument("subjects", nargs=-1, metavar="[RUN|PRESET|BUNDLE|FILE|hf:NAME]...")
@click.option(
    "--device", "-d", "devices", multiple=True, metavar="NAME", help="Device (default: the run's); may be repeated."
)
@click.option("--test", "-t", "tests", multiple=True, metavar="TEST,..", help="pp128, pp512@256, tg64@128, full1024.")
@click.option("--recipe", "recipes", multiple=True, help="RECIPE or FORMAT/RECIPE; may be given several times.")
@click.option("--time", "seconds", type=SECONDS, default="10s", show_default=True, help="Time for each bundle's speed.")
@click.option("--repeats", type=click.IntRange(1), help="Passes of each test, instead of --time.")
@click.option("--warmup", type=click.IntRange(1, 1000), help="Passes before, not counted (default: 1; 8 tokens of tg).")
@click.option(
    "--tokens", type=click.IntRange(0), default=4096, show_default=True, help="Held-out tokens for perplexity."
)
@click.option("--text", metavar="PATH", help="Score all on this text instead of each one's held-out tokens.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads (default: all performance cores).")
@click.option("--sustained", is_flag=True, help="Measure the hot state that lasts, for a board without a fan.")
@click.option("--compare", nargs=2, metavar="A B", help="Measure two in turn; say how many times as fast, or noise.")
@click.option("--suite", metavar="poster", help="Measure the poster's nine models in turn, beside OPT-350M.")
@click.option("--rounds", type=click.IntRange(1, 1000), help="Turns of --compare and --suite (default: 10).")
@click.option("--baseline", metavar="FILE", help="Exit 7 where something is worse than in this document.")
@click.option("--fail-over", type=SHARE, metavar="PERCENT", help="Worse by more than this fails (default: 5%).")
@click.option("--save", metavar="FILE", help="Write the JSON document, for --baseline, if all went well.")
@click.option("-o", "--output", type=click.Choice(OUTPUTS), default="table", show_default=True)
@json_option
def command(as_json: bool, output: str, **flags: Any) -> None:
    """Measure models on devices: speed, memory, size, and perplexity of exported files.

    Without a name: the latest run. hf:NAME is measured in torch on this machine's processor.
    """
    from merino_edge.cli.bench_output import print_document

    form = "json" if as_json else output
    try:
        document = _measure(**flags)
    except MerinoEdgeError as error:
        partial = error.details.get("partial")
        if form == "json" and not as_json:
            told = {key: value for key, value in error.to_json().items() if key != "partial"}
            print_document({**(partial or {}), "error": told}, form)
        elif partial and not as_json:
            print_document(partial, form)
        raise
    print_document(document, form)


def _typed(name: str) -> bool:
    """Say whether an option was typed: a setting that this call has no use for is no mistake."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _measure(
    subjects: tuple[str, ...],
    compare: tuple[str, str] | None,
    suite: str | None,
    rounds: int | None,
    fail_over: float | None,
    **flags: Any,
) -> dict[str, Any]:
    """Refuse what does not go together, and call the flow that is meant."""
    from merino_edge.flows.bench import BenchOptions, bench
    from merino_edge.flows.interleaved import ROUNDS

    if (compare or suite) and (subjects or flags["baseline"]):
        raise UsageError(f"--{'compare' if compare else 'suite'} stands alone", hint="leave out models and --baseline")
    if compare and suite:
        raise UsageError("--compare and --suite are two measurements", hint="leave one out")
    if _typed("rounds") and not (compare or suite):
        raise UsageError("--rounds goes with --compare and --suite", hint="for passes: --repeats")
    if _typed("fail_over") and flags["baseline"] is None:
        raise UsageError("--fail-over goes with --baseline")
    if (compare or suite) and _typed("text"):
        raise UsageError("--compare and --suite measure speed alone", hint="leave out --text")
    options = BenchOptions(**flags) if fail_over is None else BenchOptions(**flags, fail_over=fail_over)
    ask, progress = ask_person(), terminal_progress()
    if compare:
        from merino_edge.flows.compare import compare as run_compare

        return run_compare(*compare, options, rounds or ROUNDS, ask, progress)
    if suite:
        from merino_edge.flows.suite import run_suite

        return run_suite(suite, options, rounds or ROUNDS, ask, progress)
    return bench(subjects, options, ask, progress)
