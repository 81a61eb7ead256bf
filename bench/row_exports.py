"""What 8 and 4 bits cost the trained rows of the poster's table: perplexity through the exported file.

    bench/row_exports.py NAME=CHECKPOINT [NAME=CHECKPOINT ...]      into bench/results/row_exports.json

A checkpoint is a folder with `config.json`, `model.safetensors`, `tokenizer.json` and the held-out tokens that
training wrote. Each recipe is exported as `merino-edge export` does, with the quantizer that it would choose, and
judged on the first held-out tokens by the file, run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from quantization import ANY
from record import write_result

from merino_edge.checkpoint import read_config
from merino_edge.flows.export import ExportWish, export_subject
from merino_edge.flows.subject import Subject
from merino_edge.run import create_run

WISHES = (
    ("onnx", "dynamic_wi8_afp32"),
    ("onnx", "weight_only_wi8_b32_afp32"),
    ("onnx", "weight_only_wi4_b128_afp32"),
    ("onnx", "weight_only_wi4_b32_afp32"),
    ("onnx", "weight_only_wi4_b32_head8_afp32"),
    ("tflite", "dynamic_wi8_afp32"),
)
KEPT = ("perplexity", "perplexity_change", "standard_error", "perplexity_fp32", "tokens")


def main() -> None:
    """Export and judge each checkpoint in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    options = parser.parse_args()
    rows = []
    for text in options.checkpoints:
        name, _, folder = text.partition("=")
        checkpoint = Path(folder)
        architecture, config = read_config(checkpoint)
        with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
            os.environ["MERINO_EDGE_RUNS"] = scratch
            run = create_run("row", "local")
            run.set_architecture(architecture)
            subject = Subject("row", architecture, checkpoint, run)
            for format_, recipe in WISHES:
                manifest = export_subject(subject, ExportWish(format_, recipe, max_perplexity_change=ANY)).manifest
                quality = manifest.quality or {}
                row = {"row": name, "trained_tokens": config["trained_tokens"], "format": format_, "recipe": recipe}
                row |= {"quantizer": manifest.quantizer, "form": manifest.form, "file_bytes": manifest.file_bytes}
                rows.append({**row, **{key: quality[key] for key in KEPT}})
                print(
                    f"{name:12}{format_:8}{recipe:34}{row['file_bytes'] / 1e6:7.1f} MB"
                    f"{quality['perplexity']:9.3f}{100 * quality['perplexity_change']:+7.2f} %",
                    flush=True,
                )
    if not options.dry_run:
        print(f"recorded in {write_result('row_exports', {'rows': rows})}")


if __name__ == "__main__":
    main()
