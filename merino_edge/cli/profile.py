"""`merino-edge profile`."""

from __future__ import annotations

from typing import Any

import click

from merino_edge.cli.options import SECONDS, ask_person, json_option
from merino_edge.cli.output import interval, print_json, print_pairs, terminal_progress
from merino_edge.units import format_bytes, format_ms

DEFAULT = "free"  # space


@click.command("profile")
@click.argument("device", required=False)
@click.option("--host", metavar="USER@HOST", help="Register the device under this address first.")
@click.option("--estimate", is_flag=True, help="Show the shipped estimate of the board; measure nothing.")
@click.option("--quick", is_flag=True, help="Take one minute instead of five; the error is larger and stated.")
@click.option("--time", "seconds", type=SECONDS, help="Time it may take, for example 90s.")
@click.option("--format", "format_name", default=None, help="Export format to profile (default onnx).")
@click.option("--recipe", default=None, help="Recipe to profile (default dynamic_wi8_afp32).")
@click.option("--space", default=DEFAULT, show_default=True, help="Space whose architectures are measured.")
@click.option("--vocab", type=click.IntRange(2), default=None, help="Vocabulary of the measured models.")
@click.option("--context", type=click.IntRange(2), default=None, help="Tokens the cache is filled to for memory.")
@click.option("--depth", type=click.IntRange(1), default=None, help="Tokens in the cache before generation.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads (default: all performance cores).")
@click.option("--sustained", is_flag=True, help="Measure the hot state that lasts, for a board without a fan.")
@json_option
def command(as_json: bool, device: str | None, **flags: Any) -> None:
    r"""Measure a few whole models on DEVICE and fit its latency and memory model.

    \b
    merino-edge profile                          this machine
    merino-edge profile pi4 --host pi@ADDRESS    a Raspberry Pi 4 over SSH
    merino-edge profile pi4 --estimate           what ships for a Pi 4, not measured
    """
    from merino_edge.flows import profile as flow
    from merino_edge.flows.conditions import Conditions

    conditions = Conditions().with_(
        format=flags["format_name"],
        recipe=flags["recipe"],
        vocab_size=flags["vocab"],
        context_length=flags["context"],
        depth=flags["depth"],
        threads=flags["threads"],
    )
    seconds = flags["seconds"] or (flow.QUICK_SECONDS if flags["quick"] else flow.DEFAULT_SECONDS)
    options = flow.ProfileOptions(
        seconds, flags["space"], conditions, flags["host"], flags["estimate"], flags["sustained"]
    )
    document = flow.profile(device, options, ask=ask_person(), progress=terminal_progress())
    if as_json:
        print_json(document)
    else:
        same = {"format": flags["format_name"], "space": None if flags["space"] == DEFAULT else flags["space"]}
        same |= {name: flags[name] for name in ("recipe", "vocab", "context", "depth", "threads")}
        _print(document, "".join(f" --{name} {value}" for name, value in same.items() if value is not None))


def _print(document: dict[str, Any], asked: str) -> None:
    """Print a profile; `asked` are the options that a search of it needs too."""
    facts = document["facts"]
    pairs = [("device", document["device"])]
    if document["estimate"]:
        pairs.append(("kind", "estimate from the board's data sheet; nothing was measured"))
    else:
        cpu = facts["cpu"]
        cache = format_bytes(cpu["last_level_cache_bytes"]) if cpu["last_level_cache_bytes"] else "unknown"
        pairs += [
            ("cpu", f"{cpu['model']}, {cpu['cores']} cores, last-level cache {cache}"),
            ("memory", f"{format_bytes(facts['memory']['total'])}, {format_bytes(facts['memory']['available'])} free"),
            ("reads", _bandwidth(facts)),
            ("power", _power(facts)),
            ("measured", f"{document['models']} models in {document['seconds']:.0f} s{_state(document)}"),
            *_repeats(document),
        ]
    if facts.get("emulated"):
        pairs.append(("kind", f"emulated ({facts['emulated']}): no time here is a board's"))
    for test, accuracy in document["latency_models"].items():
        if accuracy and accuracy.get("mape") is not None:
            pairs.append(
                (
                    f"{test} model",
                    f"mean error {100 * accuracy['mape']:.1f} %, {100 * accuracy['within_10pct']:.0f} % within 10 %",
                )
            )
    for row in document["reach"]:
        values = []
        for label, key, form in (
            ("tg", "tg_ms", format_ms),
            ("pp128", "pp128_ms", format_ms),
            ("memory", "memory_bytes", format_bytes),
        ):
            values.append(f"{label} {form(row[key])} ({interval(row[key], row[key + '_upper'], form)})")
        pairs.append((f"{row['which']} model", ", ".join(values) + (" (estimate)" if document["estimate"] else "")))
    print_pairs(pairs)
    slow, quick = (document["reach"][i]["tg_ms"] for i in (1, 0))
    example = (slow * quick) ** 0.5
    click.echo(f"next: merino-edge search --device {document['device']} --latency {example:.2g}ms{asked}", err=True)


def _bandwidth(facts: dict[str, Any]) -> str:
    """Say how fast the memory is read, or why that is not known."""
    found = facts.get("memory_bandwidth") or {}
    if found.get("bytes_per_s"):
        return f"{found['bytes_per_s'] / 1e9:.1f} GB/s from memory with {found['threads']} threads"
    return f"unknown ({found.get('reason', 'not measured')})"


def _state(document: dict[str, Any]) -> str:
    """Say where the board was measured hot."""
    from merino_edge.flows.measuring import is_sustained

    return ", in the hot state that lasts (--sustained)" if is_sustained(document["key"]) else ""


def _repeats(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Say how well the device repeats itself, and where a virtual machine stood."""
    latency, where = document["repeatability"]["latency_ms"], document["placement"]
    pairs = []
    if latency["repeats"]:
        more = "" if latency["enough"] else "; the machine is disturbed"
        share = f"{100 * latency['coverage']:.0f} % of {latency['repeats']} repeats"
        pairs.append(("repeats", f"up to {100 * latency['margin']:.1f} % slower in a fresh process ({share}){more}"))
    if where["elsewhere"]:
        pairs.append(
            (
                "moved",
                f"{where['elsewhere']} of {where['records']} records do not count: the host had moved the processors "
                f"(usually {where['core_distance_ns']:.1f} ns for a cache line that two cores write)",
            )
        )
    return pairs


def _power(facts: dict[str, Any]) -> str:
    """Say what the board draws, or why that is not known."""
    if facts.get("power_w") is not None:
        return f"{facts['power_w']:.2f} W ({facts['power_sensor']})"
    return f"unknown ({facts.get('power_reason')})"
