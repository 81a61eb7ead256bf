"""What does an embedding skip cost in time? A decoder with it and the same one without, in turn.

    .venv/bin/python bench/skip_time.py [--trials 12] [--rounds 24]

Five layers of width 576, vocabulary 8,192, int8, one thread. In each trial the sessions are opened anew, since where
their memory lies is another each time, in another order, and take turns. Two sessions are of the plain file: the
skip is held against both, and the one against the other, which shows what such a comparison says of no difference.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from placement import once
from record import write_result

from merino_edge.agent.measure import Timer
from merino_edge.agent.opening import open_session
from merino_edge.architecture import Architecture, Block
from merino_edge.exporting import ExportOptions
from merino_edge.flows.export import random_weights, write_bundle
from merino_edge.flows.ratios import paired

CONTEXT, PROMPT, TOKENS, DEPTH = 512, 128, 24, 128
INT8 = "dynamic_wi8_afp32"
FORMS = (("onnx", "fast"), ("onnx", "standard"), ("tflite", "standard"))
PLAIN = Architecture((Block(576, 4, 1),) * 5, 576, 8_192)
ORDERS = list(itertools.permutations(range(3)))  # each comes after each other one as often
TESTS = (("tg", TOKENS, DEPTH), ("pp", PROMPT, 0))


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=24)
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for format_name, form in FORMS:
            bundles = [bundle(Path(folder), format_name, form, skip) for skip in (False, True)]
            trials = [trial(bundles, asked.rounds, number) for number in range(asked.trials)]
            for test, _, _ in TESTS:
                plain, again, skip = ([t[test][side] for t in trials] for side in range(3))
                both = [(a * b) ** 0.5 for a, b in zip(plain, again, strict=True)]
                for name, ms, other in (("skip", skip, both), ("none", again, plain)):
                    ratio = vars(paired(ms, other))
                    row = {"format": format_name, "form": form, "test": test, "what": name, **ratio}
                    found.append(row)
                    print(row, flush=True)
    print(write_result("skip_time", {"architecture": PLAIN.to_json(), "trials": asked.trials, "rows": found}))


def bundle(folder: Path, format_name: str, form: str, skip: bool) -> Path:
    """Export the decoder, with random weights."""
    shape = replace(PLAIN, embedding_skip=skip)
    options = ExportOptions(form=form, form_is_asked=True, context_length=CONTEXT, parity=False)
    name = folder / f"{format_name}-{form}-{skip}"
    return write_bundle(shape, random_weights(shape, CONTEXT), name, format_name, INT8, options).folder


def trial(bundles: list[Path], rounds: int, number: int) -> dict[str, list[float]]:
    """Open plain, plain again and skip in the order of this number; return their medians in ms by test."""
    folders = [bundles[0], bundles[0], bundles[1]]
    timers: list[Timer] = [None] * 3  # type: ignore[list-item]
    for side in ORDERS[number % len(ORDERS)]:
        manifest = json.loads((folders[side] / "manifest.json").read_text(encoding="utf-8"))
        timers[side] = Timer(open_session(folders[side], manifest, 1), 0.0, lambda share: None, lambda: None)
    result = {}
    for test, tokens, depth in TESTS:
        ms: list[list[float]] = [[], [], []]
        for turn in range(rounds + 2):
            for side in ORDERS[turn % len(ORDERS)]:
                taken = once(timers[side], test, tokens, depth)
                if turn > 1:  # the first two warm up
                    ms[side].append(taken)
        result[test] = [statistics.median(values) for values in ms]
    del timers
    gc.collect()
    return result


def figure_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the README's row."""
    rows = [row for row in result["rows"] if row["what"] == "skip"]
    names = [f"{row['form'] if row['format'] == 'onnx' else 'TFLite'} {row['test']}" for row in rows]
    what = "times as long with the embedding skip, 5 layers of width 576, int8, one thread (pp: a prompt of 128): "
    told = (f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in rows)
    return [(what + "; ".join(names), "; ".join(told))]


if __name__ == "__main__":
    main()
