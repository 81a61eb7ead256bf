"""What each recipe and quantizer costs in perplexity, on a trained model.

Takes a checkpoint (the recorded run: what `make demo-model` trains), or trains a block-shared model
of 2.4 M parameters (two widths, vocabulary 2,048) for `--train-time` where none lies there, then
exports every recipe with every quantizer as `merino-edge export` does and records the perplexity of
each file on held-out text.

    .venv/bin/python bench/quantization.py --checkpoint FOLDER
    MERINO_EDGE_DATA=... .venv/bin/python bench/quantization.py [--train-time 600]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from record import write_result

from merino_edge.architecture import Architecture, Block
from merino_edge.checkpoint import read_config
from merino_edge.exporters.quantizers import QUANTIZERS
from merino_edge.exporters.recipes import RECIPES
from merino_edge.files import read_json
from merino_edge.flows.export import ExportWish, export_subject
from merino_edge.flows.subject import Subject
from merino_edge.run import create_run
from merino_edge.training.request import TrainRequest
from merino_edge.training.train import train

ARCHITECTURE = Architecture((Block(256, 2, 2), Block(384, 2, 2)), 256, 2048)
ANY = 1e9  # no file is refused here


def trained(checkpoint: Path, seconds: float) -> Path:
    """Train where no checkpoint lies there yet."""
    if not (checkpoint / "model.safetensors").is_file():
        train(TrainRequest(ARCHITECTURE, checkpoint, seconds=seconds, threads=2, token_folder=checkpoint.parent))
    return checkpoint


@contextmanager
def exporting(checkpoint: Path) -> Iterator[Subject]:
    """Give a checkpoint a run for as long as it is exported."""
    architecture, _ = read_config(checkpoint)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        os.environ["MERINO_EDGE_RUNS"] = scratch
        run = create_run("quantization", "local")
        run.set_architecture(architecture)
        yield Subject("quantization", architecture, checkpoint, run)


def measure(subject: Subject, wish: ExportWish) -> dict[str, Any]:
    """Export once, whatever that costs; return the row."""
    manifest = export_subject(subject, replace(wish, max_perplexity_change=ANY)).manifest
    quality = manifest.quality or {}
    row = {
        "recipe": wish.recipe,
        "quantizer": manifest.quantizer,
        "form": manifest.form,
        "file_bytes": manifest.file_bytes,
        "parity": manifest.parity["max_abs_diff"] / manifest.parity["logits_std"],
        **{key: quality[key] for key in ("perplexity", "perplexity_change", "standard_error")},
    }
    print(
        f"{wish.recipe:34}{row['quantizer'] or '-':6}{row['file_bytes'] / 1e6:8.2f} MB"
        f"{row['perplexity']:10.3f}{100 * row['perplexity_change']:+9.2f} %",
        flush=True,
    )
    return {**row, "tokens": quality["tokens"], "perplexity_fp32": quality["perplexity_fp32"]}


def main() -> None:
    """Train, export everything, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--train-time", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--checkpoint", type=Path, default=Path("build/quantization/checkpoint"))
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    options = parser.parse_args()
    checkpoint = trained(options.checkpoint, options.train_time)
    training = read_json(checkpoint / "training.json")
    print(f"trained on {training['result']['tokens']:,} tokens in {training['result']['seconds']:.0f} s")
    rows = []
    with exporting(checkpoint) as subject:
        model = subject.architecture.to_json()
        for recipe in RECIPES.values():
            for quantizer in QUANTIZERS if recipe.bits == 4 else ("rtn",):
                rows.append(measure(subject, ExportWish("onnx", recipe.name, quantizer=quantizer)))
    facts = {key: training["result"][key] for key in ("tokens", "steps", "seconds", "perplexity")}
    result = {"model": model, "trained": {"source": training["data"]["source"], **facts}, "rows": rows}
    if not options.dry_run:
        print(f"recorded in {write_result('quantization', result)}")


if __name__ == "__main__":
    main()
