"""Exporters: an architecture and its numpy weights become a file that a device's runtime loads.

The files in the order of the data:

    recipes.py        what a recipe's name means: how each tensor is stored, and how near it must stay
    quantize.py       a matrix as small integers and scales, with the error bound
    graph.py          an ONNX graph written node by node; weights go to the data file, each once
    operators.py      the same layer in different operators: by recipe (matrices) and by form (the rest)
    operators_fast.py onnxruntime's own operators: the form `fast`, and every weight-only recipe
    operators_legacy.py  opset 17 alone, for older runtimes: the form `legacy`
    operators_gpu.py  float16 for GPU providers
    decoder.py        the decoder, written once over those operators: one Scan per block
    unrolled.py       the same decoder as plain layers, with the names other tools expect
    forms.py          which operators make a form, and which onnxruntime runs it
    parity.py         the written file is run and held against `merino_edge.reference`
    to_onnx.py        the exporter registered as `onnx`

Exporters take numpy arrays and know nothing of torch, search or devices. They are found by the
entry-point group `merino_edge.exporters`; `merino_edge/exporting.py` says what one takes and gives.
"""
