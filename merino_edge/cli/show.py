"""`merino-edge show`."""

from __future__ import annotations

from typing import Any

import click

from merino_edge.cli.options import json_option
from merino_edge.cli.output import print_json, print_pairs, print_table
from merino_edge.units import format_bytes, format_count, format_ms


@click.command("show")
@click.argument("subject", required=False)
@click.option("--beta", type=float, default=None, help="Weight of depth in the entropy (1/16).")
@click.option("--context", type=click.IntRange(1), default=1024, show_default=True, help="Tokens of the KV cache.")
@json_option
def command(as_json: bool, subject: str | None, beta: float | None, context: int) -> None:
    """Print what follows from the architecture of a run, preset, file, checkpoint or bundle."""
    from merino_edge.flows.show import show
    from merino_edge.flows.verify import score_options

    document = show(subject, score_options(name="entropy", beta=beta), context)
    if as_json:
        print_json(document)
    else:
        _print(document)


def _print(document: dict[str, Any]) -> None:
    architecture = document["architecture"]
    rows = [
        [str(i), str(b["width"]), f"{b['ffn_ratio']:g}", str(b["depth"])] for i, b in enumerate(architecture["blocks"])
    ]
    print_table(["block", "width", "FFN ratio", "layers"], rows, title=document["name"])
    skip = ", normed and added before each layer" if architecture.get("embedding_skip") else ""
    pairs = [
        ("embedding", f"{architecture['vocab_size']} x {architecture['embedding_width']}, tied with the head{skip}"),
        (
            "parameters",
            f"{format_count(document['unique_parameters'])} unique, "
            f"{format_count(document['executed_parameters'])} executed",
        ),
        (
            "FLOPs",
            f"{format_count(document['flops'])} (with head {format_count(document['flops_with_head'])}), 1,024 tokens",
        ),
        ("KV cache", f"{format_bytes(document['kv_cache_bytes'])} for {document['context_length']} tokens"),
    ]
    pairs += [(f"file {recipe}", format_bytes(size)) for recipe, size in document["file_bytes"].items()]
    pairs += _entropy(document["entropy"])
    if document["searched_score"] is not None:
        searched = document["searched_score"]
        weights = f", beta {searched['beta']:g}" if "beta" in searched else ""
        pairs.append(("searched by", f"{searched['name']}{weights}: {searched['score']:.6g}"))
    for row in document["devices"]:
        pairs.append(
            (
                f"on {row['device']}",
                f"{row['bundle']}: tg {format_ms(row['tg_ms'])}, pp128 {format_ms(row['pp128_ms'])}, "
                f"memory {format_bytes(row['memory_bytes'])} (predicted)",
            )
        )
    print_pairs(pairs)


def _entropy(terms: dict[str, Any]) -> list[tuple[str, str]]:
    """Write the paper's score as the sum that it is: of attention and FFN, each less for depth."""
    weights = f"beta {terms['beta']:g}, alpha {terms['alpha1']:g} and {terms['alpha2']:g}, eps {terms['eps']:g}"
    if not terms["in_domain"]:
        return [("entropy", f"0: outside the formula's domain, gamma is 1 or more ({weights})")]

    def part(name: str) -> str:
        return (
            f"{terms[f'h_{name}']:,.0f} nats = {terms[f'sum_{name}_nats']:,.0f} over {terms['layers']} layers"
            f" x (1 - gamma {terms[f'gamma_{name}']:.4f})"
        )

    return [
        ("entropy", f"{terms['score']:,.0f} nats ({weights})"),
        ("  attention", part("mhsa")),
        ("  FFN", part("ffn")),
    ]
