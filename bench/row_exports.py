"""What 8 and 4 bits cost the trained rows of the poster's table: perplexity through the exported file.

    bench/row_exports.py NAME=CHECKPOINT [NAME=CHECKPOINT ...]      into bench/results/row_exports.json

A checkpoint is a folder with `config.json`, `model.safetensors`, `tokenizer.json` and the held-out tokens that
training wrote. Each recipe is exported as `merino-edge export` does, with the quantizer that it would choose, and
judged on the first held-out tokens by the file, run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from quantization import exporting, measure
from record import write_result

from merino_edge.checkpoint import read_config
from merino_edge.flows.export import ExportWish

WISHES = (
    ExportWish("onnx", "dynamic_wi8_afp32"),
    ExportWish("onnx", "weight_only_wi8_b32_afp32"),
    ExportWish("onnx", "weight_only_wi4_b128_afp32"),
    ExportWish("onnx", "weight_only_wi4_b32_afp32"),
    ExportWish("onnx", "weight_only_wi4_b32_head8_afp32"),
    ExportWish("tflite", "dynamic_wi8_afp32"),
)


def main() -> None:
    """Export and judge each checkpoint in each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    options = parser.parse_args()
    rows = []
    for text in options.checkpoints:
        name, _, folder = text.partition("=")
        _, config = read_config(Path(folder))
        about = {"row": name, "trained_tokens": config["trained_tokens"]}
        print(f"{name}, trained on {config['trained_tokens']:,} tokens")
        with exporting(Path(folder)) as subject:
            rows += [{**about, "format": wish.format, **measure(subject, wish)} for wish in WISHES]
    if not options.dry_run:
        print(f"recorded in {write_result('row_exports', {'rows': rows})}")


if __name__ == "__main__":
    main()
