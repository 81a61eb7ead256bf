"""How few measurements does a latency model need? 2,000 transformers timed on a real Raspberry Pi 4.

The table of HAT (Wang et al. 2020, MIT): encoder-decoder models, PyTorch fp32. Its features are built
here, from its columns; the fit is the one that `merino-edge profile` uses. Random samples are fitted,
all other rows predicted, over ten splits.

    MERINO_EDGE_DATA=FOLDER .venv/bin/python bench/latency_hat.py
    .venv/bin/python bench/latency_hat.py --table OTHER.csv [--splits 10] [--seed 100]    # printed, not recorded

Another table has the columns of HAT's: other devices, or other rows of the same one. `--seed` is the first split's.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from record import write_result

from merino_edge.search.fitting import FloatArray, conformal_excess, fit_coefficients, judge, leave_one_out

TABLE = "hat/wmt14enfr_cpu_raspberrypi_all.csv"
SAMPLES = (15, 25, 50)
SPLITS = 10
COVERAGE = 0.9


def main() -> None:
    """Fit, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", type=Path, metavar="FILE.csv", help="instead of MERINO_EDGE_DATA's")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--seed", type=int, default=0, help="of the first split")
    asked = parser.parse_args()
    folder = os.environ.get("MERINO_EDGE_DATA")
    if not folder and not asked.table:
        sys.exit("MERINO_EDGE_DATA is unset: the table is not here")
    table = asked.table or Path(folder or "") / TABLE
    try:
        features, latency = read_table(table)
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"{table} is no table of HAT's: {error}")
    if len(latency) <= max(SAMPLES) or asked.splits < 1:
        sys.exit(f"{table}: {len(latency)} rows, more than {max(SAMPLES)} are needed, and at least one split")
    seeds = range(asked.seed, asked.seed + asked.splits)
    results = [evaluate(features, latency, count, seeds) for count in SAMPLES]
    for r in results:
        print(
            f"{r['samples']:3d} samples: error {r['mape']:.2%} (worst split {max(r['mape_by_split']):.2%}), "
            f"within 10 % {r['within_10pct']:.2%}, band holds {r['band_coverage']:.1%} (asked {COVERAGE:.0%})"
        )
    if asked.table or seeds != range(SPLITS):
        print("not recorded: another table or other splits than the record's")
        return
    print(write_result("latency_hat", {"table": TABLE, "rows": len(latency), "splits": SPLITS, "by_samples": results}))


def read_table(path: Path) -> tuple[FloatArray, FloatArray]:
    """Return analytic costs `(n, 14)` and the measured latency `(n,)` in ms of encoder and decoder."""
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    get = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    enc, dec = (
        {key: get[f"{side}_{name}"] for key, name in names.items()}
        for side, names in (("encoder", NAMES), ("decoder", NAMES))
    )
    cross, across = get["decoder_ende_attention_heads_avg"], get["decoder_arbitrary_ende_attn_avg"]
    one = np.ones(len(rows))
    costs = [
        enc["layers"] * enc["width"],  # attention: every query, key, value has 512 numbers
        enc["layers"] * enc["width"] * enc["ffn"],
        enc["layers"],
        enc["layers"] * enc["heads"],
        enc["width"],
        dec["layers"] * dec["width"],  # self-attention and the query of cross-attention
        dec["layers"] * dec["width"] * dec["ffn"],
        dec["layers"],
        dec["layers"] * dec["heads"],
        dec["layers"] * cross,
        dec["layers"] * across * enc["width"],  # keys and values of the encoder layers attended to
        dec["layers"] * across,
        dec["width"],  # the output head
        one,
    ]
    return np.stack(costs, axis=1), get["latency_mean_encoder"] + get["latency_mean_decoder"]


NAMES = {"width": "embed_dim", "layers": "layer_num", "ffn": "ffn_embed_dim_avg", "heads": "self_attention_heads_avg"}


def evaluate(features: FloatArray, latency: FloatArray, samples: int, seeds: range) -> dict[str, Any]:
    """Fit random samples, predict all other rows, over the splits."""
    errors, within, covered = [], [], []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(latency))
        known, unseen = order[:samples], order[samples:]
        predicted = features[unseen] @ fit_coefficients(features[known], latency[known])
        band = conformal_excess(leave_one_out(features[known], latency[known]), latency[known], COVERAGE)
        error = np.abs(predicted / latency[unseen] - 1)
        errors.append(float(error.mean()))
        within.append(float((error <= 0.1).mean()))
        covered.append(float((latency[unseen] <= predicted * (1 + band)).mean()))
    order = np.random.default_rng(seeds[0]).permutation(len(latency))
    held_out = order[samples : samples + 500]
    predicted = features[held_out] @ fit_coefficients(features[order[:samples]], latency[order[:samples]])
    return {
        "samples": samples,
        "mape": float(np.mean(errors)),
        "within_10pct": float(np.mean(within)),
        "kendall_first_split": judge(predicted, latency[held_out]).kendall,
        "band_coverage": float(np.mean(covered)),
        "mape_by_split": errors,
        "within_10pct_by_split": within,
    }


if __name__ == "__main__":
    main()
