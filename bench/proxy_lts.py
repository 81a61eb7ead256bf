"""The entropy score on trained decoders that share no weights: tables of LiteTransformerSearch.

    MERINO_EDGE_DATA=FOLDER bench/proxy_lts.py    reads FOLDER/lts/*.csv (microsoft/archai, MIT)
    bench/proxy_lts.py A.csv B.csv [C.csv ...]    other tables of the same columns: printed, not recorded

Beta and alpha_2 are chosen on all tables but one by the mean share of pairs within 10 % of decoder parameters that
they order rightly, and judged on that one. Conventions are those of the search: natural logarithms, Gaussian
weights, eps = 0.01, one mean of logarithms over layers; Q, K, V and O are width x width, whatever the heads.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from proxy import ordering
from proxy.ordering import Array
from record import write_result

from merino_edge.search.entropy import ScoreOptions, entropy_score, matrix_entropy

TABLES = ("gpt2_lm1b", "gpt2_wt103", "transxl_lm1b")
BETAS = tuple(float(b) for b in np.round(np.arange(0.0, 0.4601, 0.01), 3))
ALPHAS = (0.1, 0.2, 0.5, 1.0, 2.0)
EPS = 0.01
GRID = tuple(itertools.product(BETAS, ALPHAS))


@dataclass(frozen=True)
class Decoders:
    """One table: five sums of the formula, decoder parameters and quality of each model."""

    sums: tuple[Array, ...]
    parameters: Array
    quality: Array

    def score(self, beta: float, alpha2: float = 1.0) -> Array:
        """Score every model; 0 outside the formula's domain."""
        return entropy_score(ScoreOptions(beta=beta, alpha2=alpha2, eps=EPS)).combine(*self.sums)


def read(path: Path) -> Decoders:
    """Read a table; duplicates of one architecture stay."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    sums = []
    for row in rows:
        layers, width = int(row["n_layer"]), int(row["d_model"])
        inner = [int(v) for v in row["d_inner"].split(";")]
        if len(inner) == 1:
            inner *= layers
        if len(inner) != layers:
            raise ValueError(f"{path}: {layers} layers but {len(inner)} FFN widths")
        sums.append(
            (
                4 * layers * matrix_entropy(width, width, EPS),
                2 * sum(matrix_entropy(f, width, EPS) for f in inner),
                layers,
                layers * np.log(width),
                np.log(inner).sum(),
            )
        )
    perplexity = np.array([float(row["valid_perplexity"]) for row in rows])
    return Decoders(
        tuple(np.array(sums, np.float64).T), np.array([float(r["decoder_params"]) for r in rows]), -np.log(perplexity)
    )


def choose(tables: list[Decoders]) -> tuple[float, float]:
    """Return beta and alpha_2 of the highest mean in-10 % over the tables; the middle one of equals."""
    near = [
        float(np.mean([ordering.share_ordered(t.score(*weights), t.quality, t.parameters) for t in tables]))
        for weights in GRID
    ]
    best = np.flatnonzero(np.array(near) >= max(near) - 1e-12)
    return GRID[int(best[len(best) // 2])]


def judge(tables: dict[str, Decoders]) -> dict[str, Any]:
    """Leave each table out once; also the fixed settings a reader may ask for."""
    rows: dict[str, Any] = {}
    gains = []
    for name, table in tables.items():
        beta, alpha2 = choose([t for n, t in tables.items() if n != name])
        draws = ordering.resamples(len(table.quality), 1000)
        chosen = table.score(beta, alpha2)
        fixed = {
            "entropy-poster": table.score(1 / 16),
            "entropy, beta 0.15": table.score(0.15),
            "entropy, beta 0.44": table.score(0.44),
            "decoder-parameters": table.parameters,
        }
        args = (table.quality, table.parameters, draws)
        ours, theirs = (ordering.bootstrap_all(s, *args)["in_10pct"] for s in (chosen, table.parameters))
        gains.append(ours - theirs)
        rows[name] = {
            "chosen_on_the_others": {"beta": beta, "alpha2": alpha2},
            "scores": {k: ordering.summarise(v, *args) for k, v in {"entropy, chosen": chosen, **fixed}.items()},
            "chosen_against_parameters": ordering.paired(chosen, table.parameters, *args),
        }
    scores = next(iter(rows.values()))["scores"]
    mean = {s: round(float(np.mean([r["scores"][s]["in_10pct"]["value"] for r in rows.values()])), 4) for s in scores}
    by_beta = {
        f"{b:.2f}": round(
            float(np.mean([ordering.share_ordered(t.score(b), t.quality, t.parameters) for t in tables.values()])), 4
        )
        for b in BETAS[::5]
    }
    gain = {
        "difference": round(mean["entropy, chosen"] - mean["decoder-parameters"], 4),
        "interval": [round(v, 4) for v in ordering.interval(np.mean(gains, axis=0))],
    }
    return {
        "tables": rows,
        "mean_in_10pct": mean,
        "mean_gain_over_parameters": gain,
        "mean_in_10pct_by_beta_alpha2_1": by_beta,
    }


def show(figures: dict[str, Any]) -> None:
    """Print one line a score and table."""
    for name, row in figures["tables"].items():
        print(f"{name}: chosen on the others {row['chosen_on_the_others']}")
        for score, figure in row["scores"].items():
            near = figure["in_10pct"]
            print(
                f"  {score:22} Spearman {figure['spearman']['value']:.3f}  Kendall {figure['kendall']['value']:.3f}  "
                f"in 10 % {near['value']:.3f} {near['interval']}"
            )
        print(f"  chosen - parameters, in 10 %: {row['chosen_against_parameters']['in_10pct']}")
    print(f"mean in 10 %: {figures['mean_in_10pct']}; over parameters {figures['mean_gain_over_parameters']}")
    print(f"mean in 10 % by beta, alpha_2 = 1: {figures['mean_in_10pct_by_beta_alpha2_1']}")


def main() -> None:
    """Judge, print and record; without the data, say so."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tables", type=Path, nargs="*", metavar="TABLE.csv", help="instead of MERINO_EDGE_DATA's")
    asked = parser.parse_args().tables
    data = os.environ.get("MERINO_EDGE_DATA")
    if not data and not asked:
        print("MERINO_EDGE_DATA is not set: the tables of lts/ are not at hand, nothing recomputed", file=sys.stderr)
        return
    if len(asked) == 1:
        sys.exit("one table alone: beta is chosen on others than the one it is judged on, so give at least two")
    tables = {}
    for path in asked or [Path(data or "") / "lts" / f"{name}.csv" for name in TABLES]:
        try:
            tables[str(path) if asked else path.stem] = read(path)
        except (OSError, KeyError, ValueError) as error:
            sys.exit(f"{path} is no such table: {type(error).__name__} {error}")
    figures = judge(tables)
    show(figures)
    if asked:
        print("not recorded: other tables than the record's")
        return
    write_result("proxy_lts", figures)


if __name__ == "__main__":
    main()
