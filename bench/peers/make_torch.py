"""The model in torch through `torch.onnx`, as a user would: exported with its cache, then quantized.

    python make_torch.py CHECKPOINT FOLDER WHAT

WHAT is `dynamo.onnx`, `quantized.onnx` or `preprocessed-quantized.onnx`; the latter two start from the first.
Runs in the environment `torch`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from engine_torch import Incremental, load_model


def export(checkpoint: Path, path: Path) -> None:
    """Export with input ids, wanted positions and the cache of each executed layer, lengths dynamic."""
    model = load_model(checkpoint)
    config = model.config.merino
    past = [(torch.zeros(1, config.heads(b), 3, config.head_dim),) * 2 for b, _ in config.layers()]
    past = [(key.clone(), value.clone()) for key, value in past]
    dynamic: Any = torch.export.Dim.DYNAMIC
    layers = range(len(past))
    program = torch.onnx.export(
        Incremental(model).eval(),
        (torch.zeros(1, 4, dtype=torch.int64), torch.tensor([2, 3]), past),
        dynamo=True,
        dynamic_shapes=({1: dynamic}, {0: dynamic}, [({2: dynamic}, {2: dynamic}) for _ in layers]),
        input_names=["input_ids", "logits_index", *(f"past.{i}.{kind}" for i in layers for kind in ("key", "value"))],
        output_names=["logits", *(f"present.{i}.{kind}" for i in layers for kind in ("key", "value"))],
    )
    assert program is not None
    program.save(path, external_data=False)


def quantize(source: Path, path: Path, preprocess: bool) -> None:
    """Quantize as the runtime's documentation says, to int8 weights; with its pre-processing or without."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as scratch:
        if preprocess:
            prepared = Path(scratch) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            source = prepared
        quantize_dynamic(str(source), str(path), weight_type=QuantType.QInt8)


def main() -> None:
    """Write one file."""
    checkpoint, folder, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if what == "dynamo.onnx":
        export(checkpoint, folder / what)
    else:
        quantize(folder / "dynamo.onnx", folder / what, what.startswith("preprocessed"))


if __name__ == "__main__":
    with torch.inference_mode(False), torch.no_grad():
        main()
