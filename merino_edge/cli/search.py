"""`merino-edge search`."""

from __future__ import annotations

from typing import Any

import click

from merino_edge.cli.chart import print_front
from merino_edge.cli.options import BYTES_LIMIT, COUNT, COUNT_LIMIT, ENERGY_LIMIT, MS_LIMIT, device_option, json_option
from merino_edge.cli.output import interval, print_json, print_pairs, print_table, terminal_progress
from merino_edge.units import format_bytes, format_count, format_ms

MODES = ["auto", "exact", "dp", "evolution", "dp+evolution"]


@click.command("search")
@device_option
@click.option("--latency", type=MS_LIMIT, help="Upper limit, or A..B: 50ms.")
@click.option("--memory", type=BYTES_LIMIT, help="Peak memory of the whole process on the device: 200MB.")
@click.option("--file-size", type=BYTES_LIMIT, help="Bytes of the exported model: 30MB.")
@click.option("--parameters", type=COUNT_LIMIT, help="Unique parameters: 61M, or 50M..53M.")
@click.option("--flops", type=COUNT_LIMIT, help="FLOPs of a forward pass over 1,024 tokens, head apart: 110G.")
@click.option("--energy", type=ENERGY_LIMIT, help="Energy per token, where the device has a sensor: 30mJ.")
@click.option("--latency-of", default=None, help="What --latency limits: tg (default), ppN or ttft.")
@click.option("--percentile", type=int, default=None, help="Percentile of the samples (50).")
@click.option("--depth", type=click.IntRange(1), default=None, help="Tokens in the cache before generation (128).")
@click.option("--format", "format_name", default=None, help="Export format that the limits mean (onnx).")
@click.option("--recipe", default=None, help="Recipe that the limits mean (dynamic_wi8_afp32).")
@click.option("--threads", type=click.IntRange(1), default=None, help="Threads (all performance cores).")
@click.option("--vocab", type=click.IntRange(2), default=None, help="Vocabulary size, instead of the space's choices.")
@click.option("--context", type=click.IntRange(2), default=None, help="Context length (1024).")
@click.option("--train-tokens", type=COUNT, default=None, help="Tokens the model will be trained on (300M).")
@click.option(
    "--space",
    default=None,
    help="Name of a space, or a TOML file (free; poster for scores that are no sums and with --mode evolution).",
)
@click.option(
    "--embedding-skip/--no-embedding-skip",
    default=None,
    help="Add the normed embedding before each layer, where all blocks have one width: trains better, 2 to 3 % slower.",
)
@click.option("--score", default=None, help="Score to maximise: balanced-parameters (default), entropy, ...")
@click.option(
    "--beta", type=float, default=None, help="Weight of depth in the entropy (the study's, within the domain)."
)
@click.option("--alpha1", type=float, default=None, help="Weight of attention in the entropy (1).")
@click.option("--alpha2", type=float, default=None, help="Weight of the FFN in the entropy (1).")
@click.option("--eps", type=float, default=None, help="Noise scale of the entropy (0.01).")
@click.option("--mode", type=click.Choice(MODES), default="auto", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the evolutionary search.")
@click.option("--evaluations", type=click.IntRange(1), default=None, help="Architectures it may look at.")
@click.option("--run", default=None, metavar="NAME", help="Name of the run to write (the next free run-N).")
@click.option("--verify/--no-verify", default=True, help="Measure the winner on the device and search again.")
@json_option
def command(as_json: bool, **flags: Any) -> None:
    r"""Find the architecture with the best training-free score that meets every limit.

    \b
    merino-edge search --device pi4 --latency 50ms
    merino-edge search --latency 5ms --memory 150MB --vocab 8192
    merino-edge search --parameters 50.4M..53.6M --flops 60G --vocab 50257
    """
    from merino_edge.flows.conditions import Conditions
    from merino_edge.flows.search import search
    from merino_edge.flows.verify import SearchOptions, score_options

    names = ("latency_of", "percentile", "depth", "recipe", "threads", "train_tokens")
    conditions = Conditions().with_(
        **{name: flags[name] for name in names},
        format=flags["format_name"],
        context_length=flags["context"],
    )
    limits = {
        "latency_ms": flags["latency"],
        "memory_bytes": flags["memory"],
        "file_bytes": flags["file_size"],
        "parameters": flags["parameters"],
        "flops": flags["flops"],
        "energy_mj": flags["energy"],
    }
    options = SearchOptions(
        device=flags["device"],
        limits={name: limit for name, limit in limits.items() if limit is not None},
        conditions=conditions,
        space=flags["space"],
        vocab_size=flags["vocab"],
        embedding_skip=flags["embedding_skip"],
        score=score_options(name=flags["score"], **{n: flags[n] for n in ("beta", "alpha1", "alpha2", "eps")}),
        study_beta=flags["beta"] is None,
        mode=flags["mode"],
        seed=flags["seed"],
        evaluations=flags["evaluations"],
        run=flags["run"],
        verify=flags["verify"],
    )
    document = search(options, progress=terminal_progress())
    if as_json:
        print_json(document)
    else:
        _print(document)


def _print(document: dict[str, Any]) -> None:
    from merino_edge.architecture import Architecture
    from merino_edge.flows.search import describe_check, limit_lines, repeatability_lines

    pairs = [
        ("found", Architecture.from_json(document["architecture"]).describe()),
        (
            "score",
            f"{document['score']:.6g} ({document['score_options']['name']}), "
            f"best of {document['feasible']:,} that meet the limits",
        ),
        (
            "searched",
            f"{document['evaluated']:,} of {document['space_size']:,} ({document['mode']}) "
            f"in {document['seconds']['score'] + document['seconds']['search']:.3f} s",
        ),
        (
            "parameters",
            f"{format_count(document['parameters'])} unique, {format_count(document['executed_parameters'])} executed",
        ),
        ("FLOPs", f"{format_count(document['flops'])} (with head {format_count(document['flops_with_head'])})"),
        ("file", format_bytes(document["predicted"]["file_bytes"])),
    ]
    pairs += _device_pairs(document)
    if document["outside_domain"]:
        share = 100 * document["outside_domain"] / document["evaluated"]
        pairs.append(("domain", f"gamma reaches 1 in {document['outside_domain']:,} of them ({share:.2g} %): scored 0"))
    if document["expected_loss"] is not None:
        loss = document["expected_loss"]
        pairs.append(
            (
                "loss",
                f"expected {loss['nats_per_token']:.2f} nats a token ({loss['low']:.2f} to {loss['high']:.2f}, 90 %) "
                f"of the study's text after {format_count(document['conditions']['train_tokens'])} tokens",
            )
        )
    pairs += [("limits", line) for line in limit_lines(document)]
    if document["rounds"]:
        kept = "keeps its limits by the device's clock" if document["verified"] else "does NOT keep its limits yet"
        why = f": {document['unverified_reason']}" if document["unverified_reason"] else ""
        count = len(document["rounds"])
        pairs.append(("verified", f"{kept}, {count} {'measurement' if count == 1 else 'measurements'}{why}"))
    pairs += [("repeats", line) for line in repeatability_lines(document)]
    print_pairs(pairs)
    if document["sensitivity"]:
        rows = [
            [s["name"], f"{s['factor']:g} x", f"{s['limit']:g}", "none" if s["score"] is None else f"{s['score']:.6g}"]
            for s in document["sensitivity"]
        ]
        print_table(["what a limit costs", "of it", "limit", "best score"], rows)
    print_front(document["run"])
    for check in document["prediction_checks"]:
        click.echo(f"prediction of {describe_check(check)}")
    click.echo(f"run: {document['run']}   next: merino-edge train {document['run']}", err=True)


def _device_pairs(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is predicted and measured of latency, memory and energy."""
    predicted, measured = document["predicted"], document["measured"] or {}
    word = "estimate" if document["estimate"] else "predicted"
    pairs = []
    tests = dict.fromkeys(("tg", "pp128", document["conditions"]["latency_of"]))
    for label, key, measured_key, fmt in (
        *((test, f"{test}_ms", f"{test}_ms", format_ms) for test in tests),
        ("memory", "memory_bytes", "peak_memory_bytes", format_bytes),
        ("energy", "energy_mj", "energy_mj", lambda mj: f"{mj:.3g} mJ a token"),
    ):
        if predicted.get(key) is None:
            continue
        text = f"{word} {fmt(predicted[key])}"
        if measured.get(measured_key) is not None:
            text = f"measured {fmt(measured[measured_key])} ({text})"
        elif predicted.get(f"{key}_upper"):
            text += f", interval {interval(predicted[key], predicted[f'{key}_upper'], fmt)}"
        pairs.append((label, text))
    return pairs
