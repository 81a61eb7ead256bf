"""A checkpoint, or GPT-2-124M's configuration with random weights, through optimum-onnx's own export.

    python make_optimum.py CHECKPOINT|gpt2 FOLDER

Runs in the environment `optimum`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from optimum.exporters.onnx import main_export


def main() -> None:
    """Export with cache."""
    source, folder = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        if source == "gpt2":
            from transformers import GPT2Config, GPT2LMHeadModel

            GPT2LMHeadModel(GPT2Config()).save_pretrained(scratch)
            source = scratch
        main_export(
            source, Path(folder), task="text-generation-with-past", library_name="transformers", do_validation=False
        )


if __name__ == "__main__":
    main()
