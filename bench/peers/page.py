"""The tables of `docs/peers.md`, made from the record: no number there is typed by hand."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peers import judging
from peers.contenders import LIMIT_GOAL, READ_MB, goals

ROOT = Path(__file__).resolve().parents[2]
PAGE, RECORD = ROOT / "docs" / "peers.md", ROOT / "bench" / "results" / "peers.json"
BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
TESTS = {"decode": "decode", "prefill": "prompt", "full": "prompt, all logits"}
QUIET = 0.02  # share of the time waited for a core up to which a run is called quiet
LIKE = {
    "A60": {
        "fp32": "A60: ours, ONNX fp32",
        "int8": "A60: ours, ONNX int8 fast, head b128",
    },
    "merino-61m": {
        "fp32": "merino-61m: ours, ONNX fp32",
        "int8": "merino-61m: ours, ONNX int8 fast, head b128",
        "int4": "merino-61m: ours, ONNX int4 b128",
    },
}
"""Which of ours a peer is held against: the same model, or for other models the preset; the same precision."""

Table = list[tuple[str, ...]]


def write(check: bool) -> int:
    """Write the page's tables, or say whether it has them; the exit code."""
    if not RECORD.exists():
        print("nothing recorded yet: run bench/peers.py without --only", file=sys.stderr)
        return 1
    document = json.loads(RECORD.read_text(encoding="utf-8"))
    old = PAGE.read_text(encoding="utf-8")
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    new = f"{head}{BEGIN}\n{tables(document)}\n{END}{tail}"
    if check:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


def show(result: dict[str, Any]) -> None:
    """Print the same tables for a terminal."""
    for title, rows in sections(result):
        if len(rows) < 2:
            continue
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        print(f"\n{title}")
        for row in rows:
            cells = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            print("  ".join(cells).rstrip())


def tables(document: Mapping[str, Any]) -> str:
    """Return everything between the markers."""
    result, machine = document["result"], document["machine"]
    parts = [
        f"Measured {document['date'][:10]} at commit `{document['commit'][:10]}` on {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, in {result['seconds'] / 60:.0f} min. "
        + quiet(result)
    ]
    for title, rows in sections(result):
        if len(rows) > 1:
            parts += [f"### {title}", markdown(rows)]
    return "\n\n".join(parts)


def sections(result: dict[str, Any]) -> list[tuple[str, Table]]:
    """Return each table under its title."""
    return [
        ("Asked for, and found", goal_table(result)),
        ("Like for like", like_table(result)),
        ("Everybody", full_table(result)),
        ("How near the machine's limit", limit_table(result)),
        ("Not measured", [("contender", "reason"), *sorted(result["not_measured"].items())]),
        ("Versions", version_table(result)),
    ]


def samples(result: Mapping[str, Any], name: str, test: str, threads: int) -> list[list[int]] | None:
    """Return the rounds of one contender and test, None where it was not measured."""
    row = result["contenders"].get(name, {"samples": {}})
    rounds = row["samples"].get(str(threads), {}).get(test, {"rounds": []})["rounds"]
    return rounds or None


def compared(result: Mapping[str, Any], slower: str, faster: str, test: str, threads: int) -> dict[str, Any] | None:
    """Return the ratio of two contenders' times, None where one is missing."""
    a, b = samples(result, slower, test, threads), samples(result, faster, test, threads)
    return judging.ratio(a, b) if a and b else None


def interval(found: Mapping[str, Any] | None) -> str:
    """`4.02 (3.9-4.1)`."""
    return f"{found['value']:.2f} ({found['low']:.2f}-{found['high']:.2f})" if found else "-"


def goal_table(result: Mapping[str, Any]) -> Table:
    """What is asked for beside what was found."""
    rows: Table = [("ours", "over", "test", "threads", "asked", "found (95 %)", "")]
    for goal in goals():
        for threads, at_least in goal.at_least.items():
            found = compared(result, goal.peer, goal.ours, goal.test, threads)
            said = judging.verdict(found, at_least) if found else "not measured"
            if said == "short" and goal.why:
                said = f"short: {goal.why}"
            number = (str(threads), f"{at_least:g} x", interval(found))
            rows.append((goal.ours, goal.peer, TESTS[goal.test], *number, said))
    name, threads, at_least = LIMIT_GOAL
    share = limit_share(result, name, threads, READ_MB[-1])
    said = "not measured" if share is None else "ahead" if share >= at_least else "short"
    found_share = "-" if share is None else f"{100 * share:.0f} %"
    rows.append((name, "memory bandwidth", "decode", str(threads), f"{100 * at_least:.0f} %", found_share, said))
    return rows


def like_table(result: Mapping[str, Any]) -> Table:
    """Every peer's time over that of our file of the same precision."""
    cases = [(test, threads) for test in ("decode", "prefill") for threads in result["threads"]]
    rows: Table = [("peer", "over ours", *(f"{TESTS[test]}, {threads} T" for test, threads in cases))]
    for name, row in result["contenders"].items():
        pairs = LIKE.get(row["model"], LIKE["merino-61m"])
        other = pairs.get(row["precision"])
        if (row["ours"] and row["model"] in LIKE) or other not in result["contenders"] or row["engine"] == "bandwidth":
            continue
        rows.append((name, str(other), *(interval(compared(result, name, str(other), *case)) for case in cases)))
    return rows


def full_table(result: Mapping[str, Any]) -> Table:
    """Medians, bytes and memory of everybody."""
    counts = result["threads"]
    cases = [(test, threads) for test in TESTS for threads in counts]
    rows: Table = [
        (
            "contender", "file MB", "load ms", "anonymous / file / peak MB", "anonymous after a prompt MB",
            "logits off",
            *(f"{TESTS[test]} {'tok/s' if test == 'decode' else 'ms'}, {threads} T" for test, threads in cases),
        )
    ]  # fmt: skip
    for name, row in result["contenders"].items():
        if row["engine"] == "bandwidth":
            continue
        held, used = row["memory"]["loaded"], row["memory"]["used"]
        off = row.get("logits_difference")
        rows.append(
            (
                name,
                f"{row['file_bytes'] / 1e6:.1f}",
                f"{np.median(row['load_ns']) / 1e6:.0f}",
                " / ".join(f"{held[kind] / 1e6:.0f}" for kind in ("anonymous", "file", "peak")),
                f"{used['anonymous'] / 1e6:.0f}",
                "-" if off is None else f"{100 * off:.1f} %" if off > 1e-3 else f"{off:.0e}",
                *(speed(result, name, *case) for case in cases),
            )
        )
    return rows


def speed(result: Mapping[str, Any], name: str, test: str, threads: int) -> str:
    """Tokens per second, or ms of a prompt."""
    found = samples(result, name, test, threads)
    if not found:
        return "-"
    ms = float(np.median(judging.per_round(found)))
    return f"{1e3 / ms:.0f}" if test == "decode" else f"{ms:.0f}"


def read_rate(result: Mapping[str, Any], megabytes: int, threads: int) -> float | None:
    """Bytes per second that were read."""
    name = f"memory read, {megabytes} MB"
    found = samples(result, name, "decode", threads)
    if not found:
        return None
    ms = float(np.median(judging.per_round(found)))
    return float(result["contenders"][name]["bytes_read"]) / ms * 1e3


def limit_share(result: Mapping[str, Any], name: str, threads: int, megabytes: int) -> float | None:
    """Rate at which a contender reads weights while decoding, over the rate at which memory can be read."""
    found, rate = samples(result, name, "decode", threads), read_rate(result, megabytes, threads)
    read = result["contenders"].get(name, {}).get("weight_bytes_per_token")
    if not found or not rate or not read:
        return None
    return float(read / (np.median(judging.per_round(found)) / 1e3) / rate)


def limit_table(result: Mapping[str, Any]) -> Table:
    """Weight bytes a token and the share of the bandwidth, for everybody whose bytes are known."""
    cases = [(mb, threads) for mb in reversed(READ_MB) for threads in result["threads"]]
    rates = {case: read_rate(result, *case) for case in cases}
    if not any(rates.values()):
        return []
    heads = (f"of {rate / 1e9:.0f} GB/s ({mb} MB, {threads} T)" for (mb, threads), rate in rates.items() if rate)
    rows: Table = [("contender", "MB a token", *heads)]
    for name, row in result["contenders"].items():
        shares = [limit_share(result, name, threads, mb) for (mb, threads), rate in rates.items() if rate]
        if any(share is not None for share in shares):
            said = ("-" if share is None else f"{100 * share:.0f} %" for share in shares)
            rows.append((name, f"{row['weight_bytes_per_token'] / 1e6:.1f}", *said))
    return rows


def version_table(result: Mapping[str, Any]) -> Table:
    """What each environment holds."""
    found = result["versions"].items()
    said = [(name, ", ".join(f"{package} {v}" for package, v in versions.items())) for name, versions in found]
    return [("environment", "versions"), *said]


def quiet(result: Mapping[str, Any]) -> str:
    """Say how long threads waited for a core, of all the time they had: it tells whether anything else ran.

    A tool that starts more threads than it was told to waits for itself; that counts too.
    """
    waited, total = Counter[int](), Counter[int]()
    for row in result["contenders"].values():
        for threads, by_test in row["samples"].items():
            for test in by_test.values():
                waited[int(threads)] += sum(test["queued_ns"])
                total[int(threads)] += int(threads) * sum(sum(taken) for taken in test["rounds"])
    share = waited.total() / max(1, total.total())
    judged = "the machine was quiet" if share <= QUIET else "**the machine was not quiet: do not quote these times**"
    told = " and ".join(f"{100 * waited[n] / max(1, total[n]):.1f} % with {n}" for n in sorted(total))
    return f"Threads waited for a core {100 * share:.1f} % of their time ({told}): {judged}."


def markdown(rows: Table) -> str:
    """Return a table."""
    head, *body = rows
    lines = [head, ("---", *("---:" for _ in head[1:])), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
