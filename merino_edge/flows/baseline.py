"""The regression guard of `bench`: rows against an earlier document of the same device and conditions.

A file's bytes are exact. A peak of memory or a median that looks worse is measured again in fresh
processes, because a process may be unlucky: it is a regression where none of them is within the limit,
and a slowdown only where the 95 % interval of the ratio lies above the limit as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from merino_edge.errors import (
    InvalidFileError,
    MeasurementError,
    MerinoEdgeError,
    RegressionError,
    UsageError,
    next_step,
)
from merino_edge.files import read_json, write_json
from merino_edge.flows.bench_tests import label_of
from merino_edge.flows.ratios import FEWEST, Ratio, blocks, unpaired
from merino_edge.progress import Progress
from merino_edge.units import format_bytes

Row = dict[str, Any]

IDENTITY = ("architecture_digest", "format", "recipe", "form", "test", "tokens", "depth")
CONDITIONS = ("device_id", "power_mode", "threads", "provider", "context_length")
"""Another of these, and the numbers do not compare."""
SOFTWARE = ("os_image", "runtime", "exporter_version")
"""What a regression may come from: told, and compared all the same."""
SIZES = ("peak_memory_bytes", "file_bytes")
TRIES = 2  # more, in fresh processes, for what looks worse
REWRITE = "write one with: merino-edge bench --save FILE"


def read_baseline(path: Path) -> list[Row]:
    """Read the rows of an earlier document.

    Raises:
        InvalidFileError: it is none.
    """
    with next_step(REWRITE):
        rows = read_json(path, "baseline").get("rows")
        if not isinstance(rows, list) or not rows:
            raise InvalidFileError(f"baseline {path} holds no rows of bench")
        for number, row in enumerate(rows, start=1):
            where = f"baseline {path}, row {number}"
            if not isinstance(row, dict):
                raise InvalidFileError(f"{where}: not a row")
            missing = [k for k in (*IDENTITY, *CONDITIONS, *SOFTWARE, *SIZES, "model", "samples_ns") if k not in row]
            if missing:
                raise InvalidFileError(f"{where}: '{missing[0]}' is missing")
            samples = row["samples_ns"]
            if not isinstance(samples, list) or not samples or any(type(s) is not int or s <= 0 for s in samples):
                raise InvalidFileError(f"{where}: samples_ns are no times")
            if row.get("valid") is not True:
                raise InvalidFileError(f"{where} is not a valid measurement: {row.get('invalid_reason')}")
    return rows


def check_device(before: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Raise before anything is measured where a baseline knows nothing of a device."""
    known = {str(row["device_id"]) for row in before}
    if facts["device_id"] not in known:
        was = ", ".join(sorted(known))
        raise UsageError(
            f"the baseline was taken under other conditions: device id was {was} and is {facts['device_id']}",
            hint=REWRITE,
        )


def check_saving(name: str | None) -> None:
    """Raise early where a document could not be written later; None saves nothing."""
    if name is None:
        return
    path = Path(name)
    if path.exists() and not path.is_file():
        raise UsageError(f"--save {path} is no plain file", hint="name a file, or a new one")
    if not path.parent.is_dir():
        raise UsageError(f"--save {path}: there is no folder {path.parent}", hint=f"mkdir -p {path.parent}")


def guard(
    document: dict[str, Any], before: Sequence[Row], fail_over: float, again: Callable[[Sequence[Row]], list[Row]]
) -> dict[str, Any]:
    """Hold a document against a baseline.

    Args:
        document: Of `bench`.
        before: Rows of the baseline.
        fail_over: The share by which a row may be worse.
        again: Measures rows once more.

    Returns:
        The document with `baseline`: what was compared, and how it came out.

    Raises:
        UsageError: the baseline was taken on another device or under other conditions, or of other models.
        RegressionError: something is worse.
    """
    pairs, notes = _matched(document["rows"], before)
    tries = [row for row, _ in pairs]
    judged = _judged(pairs, tries, fail_over)
    number = 1
    while number <= TRIES and any(map(_open, judged)):
        tries += again([row for (row, _), lines in zip(pairs, judged, strict=True) if _open(lines)])
        judged = _judged(pairs, tries, fail_over)
        number += 1
    found = [line for lines in judged for line in lines]
    document = {**document, "baseline": {"fail_over": fail_over, "tries": number, "notes": notes, "rows": found}}
    worse = [line for line in found if line["verdict"] == "worse"]
    if worse:
        raise RegressionError(
            f"{len(worse)} of {len(found)} comparisons are worse than the baseline allows: "
            + "; ".join(f"{line['model']} {line['label']}: {line['words']}" for line in worse),
            hint="find what changed; if it is meant to be so, save a new baseline: merino-edge bench --save FILE",
            partial=document,
        )
    _check_valid([row for (row, _), lines in zip(pairs, judged, strict=True) if not lines], "compared", document)
    return document


def save(name: str | None, document: dict[str, Any], progress: Progress) -> None:
    """Write a document, whole or not at all, and say where; None saves nothing.

    Raises:
        MeasurementError: it holds rows that are not valid, which no later one could be held against.
        MerinoEdgeError: the disk is full; what was measured is in the details.
    """
    if name is None:
        return
    _check_valid([row for row in document["rows"] if not row["valid"]], "saved", document)
    try:
        write_json(Path(name), document)
    except MerinoEdgeError as error:
        error.details["partial"] = document
        raise
    progress.note(f"saved: {name}")


def _check_valid(rows: Sequence[Row], what: str, document: dict[str, Any]) -> None:
    if rows:
        raise MeasurementError(
            f"not {what}: {_name(rows[0])} is not valid: {rows[0]['invalid_reason']}",
            hint="stop what else runs on the device, let it cool, and measure again",
            partial=document,
        )


def _judged(pairs: Sequence[tuple[Row, Row]], tries: Sequence[Row], fail_over: float) -> list[list[dict[str, Any]]]:
    """Judge each row by what all valid processes gave for it; nothing where there is none."""
    found = []
    for row, old in pairs:
        mine = [one for one in tries if one["valid"] and _place(one) == _place(row)]
        found.append(judge(row, mine, old, fail_over) if mine else [])
    return found


def _open(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether another process could say otherwise."""
    return not lines or any(line["verdict"] == "worse" and line["what"] != "file_bytes" for line in lines)


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["device"], row["model"], _key(row)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what must be equal for two rows to be the same measurement; models of others go by their name."""
    return tuple(row["architecture_digest"] or row["model"] if name == IDENTITY[0] else row[name] for name in IDENTITY)


def _matched(rows: Sequence[Row], before: Sequence[Row]) -> tuple[list[tuple[Row, Row]], list[str]]:
    """Return (row, row of the baseline) pairs, and what a reader should know about the rest."""
    old = {_key(row): row for row in before}
    pairs = [(row, old[_key(row)]) for row in rows if _key(row) in old]
    if not pairs:
        raise UsageError(
            "the baseline holds none of these models and tests", hint="measure what it holds, or " + REWRITE
        )
    for row, was in pairs:
        differ = [name for name in CONDITIONS if row[name] != was[name]]
        if differ:
            told = ", ".join(f"{name.replace('_', ' ')} was {was[name]} and is {row[name]}" for name in differ)
            raise UsageError(f"the baseline was taken under other conditions: {told}", hint=REWRITE)
        fewest = min(len(row["samples_ns"]), len(was["samples_ns"]))
        if fewest < FEWEST:
            raise UsageError(
                f"{_name(row)}: {fewest} samples cannot tell a slowdown from noise, {FEWEST} can",
                hint=f"measure both with more --repeats, or by --time; then {REWRITE}",
            )
    notes = []
    for name in SOFTWARE:
        changed = {(was[name], row[name]) for row, was in pairs if was[name] != row[name]}
        notes += [f"{name.replace('_', ' ')} was {a} and is {b}" for a, b in sorted(changed, key=str)]
    left = [row for row in rows if _key(row) not in old]
    now = {_key(row) for row in rows}
    gone = [row for row in before if _key(row) not in now]
    notes += [f"not in the baseline: {_name(row)}" for row in left]
    notes += [f"in the baseline alone: {_name(row)}" for row in gone]
    return pairs, notes


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['model']} {_label(row)}"


def _label(row: Mapping[str, Any]) -> str:
    test = label_of(row["test"], row["tokens"], row["depth"])
    return f"{row['format']} {row['recipe']} {row['form']} {test}"


def judge(row: Row, tries: Sequence[Row], old: Row, fail_over: float) -> list[dict[str, Any]]:
    """Compare one row with its baseline: time, then sizes.

    Args:
        row: The row.
        tries: Itself, and what other processes gave for it.
        old: The baseline's.
        fail_over: The share by which it may be worse.
    """
    named = {"model": row["model"], "label": _label(row), "device": row["device"]}
    was = blocks(old["samples_ns"], old["test"])
    ratios = [unpaired(blocks(one["samples_ns"], one["test"]), was) for one in tries]
    best = min(ratios, key=lambda ratio: ratio.low)
    p50 = min(float(one["p50_ms"]) for one in tries)
    lines = [
        {
            **named, "what": "p50_ms", "before": old["p50_ms"], "now": p50, "ratio": best.value, "low": best.low,
            "high": best.high, "verdict": verdict(best, fail_over),
            "words": f"{p50:.3f} ms, was {old['p50_ms']:.3f}: {best.words()}",
        }
    ]  # fmt: skip
    for what in SIZES:
        values = [one[what] for one in tries if one[what]]
        if not values or not old[what]:
            continue
        size = min(values)
        ratio = size / old[what]
        words = f"{what} {format_bytes(size)}, was {format_bytes(old[what])}: {ratio:.3f}x"
        worse = "worse" if ratio > 1 + fail_over else "within the limit"
        sizes = {"what": what, "before": old[what], "now": size, "ratio": ratio, "low": ratio, "high": ratio}
        lines.append({**named, **sizes, "verdict": worse, "words": words})
    return lines


def verdict(ratio: Ratio, fail_over: float) -> str:
    """Return `worse` where the whole interval lies above the limit, and what else there is to say otherwise."""
    if ratio.low > 1 + fail_over:
        return "worse"
    return "within noise" if ratio.value > 1 + fail_over else "within the limit"
