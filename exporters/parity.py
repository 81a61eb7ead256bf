"""The written file is run and held against `merino_edge.reference` with the same rounded weights.

Two things come of it: the agreement that the manifest states (the prompt in one piece, token by
token, and in two unequal pieces, so that the cache is exercised), and the check that a device
repeats before it trusts the file. A file whose products round activations to 8 bits is run twice: as
it is, and with products in float32, so that a wrong graph cannot hide behind that rounding. How much
the rounding may do by itself is computed in numpy: trained weights, whose activations have a few
large values, move by more than random ones (0.5 of a deviation after 300 M tokens, 0.1 before any).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from merino_edge.architecture import Architecture
from merino_edge.bundle import OutputCheck
from merino_edge.errors import ExportError
from merino_edge.exporters.activations import forward_with_rounded_activations
from merino_edge.exporters.recipes import Recipe
from merino_edge.exporting import ExportOptions, Tensors
from merino_edge.reference import forward

Float32 = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
PROMPT_TOKENS = 24
CHECK_TOKENS = 8
TOP = 8
FLOAT32_COMPUTE = 1  # accuracy_level of MatMulNBits
ROUNDING_SLACK = 2.0  # another kernel rounds other values up: 0.9 to 1.2 of numpy's difference was seen
FLOAT32_STEPS = 8  # of the largest logit: what another order of summation does, where all logits are nearly one number
MOST_ROUNDING = 1.0  # standard deviations of the logits: beyond, the file says something else than the model
_RUNTIME_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
)


class Runner(Protocol):
    """A loaded file that keeps its cache, whatever the format."""

    def reset(self) -> None:
        """Empty the cache."""

    def feed(self, token_ids: Tokens, logits_index: Tokens | None = None) -> Float32:
        """Run the next tokens and return logits `(N, V)`; all positions if no index is given."""


def check_file(
    runner: Runner, architecture: Architecture, tensors: Tensors, recipe: Recipe, options: ExportOptions
) -> tuple[dict[str, Any], OutputCheck]:
    """Return what an exporter says of a file: its parity, as far as that is asked for, and the check for devices."""
    parity: dict[str, Any] = {"checked": False}
    if options.parity:
        parity = compare(runner, architecture, tensors, recipe, options.seed)
    tolerance = max(recipe.check_tolerance, ROUNDING_SLACK * parity.get("rounding", 0.0))
    return parity, output_check(runner, architecture, tolerance, options.seed)


def remove_refused(folder: Path, names: Sequence[str], made: bool) -> None:
    """Remove what was written of a file that is refused, and the folder where it was `made` for it."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if made and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class FileRunner:
    """Runs an exported graph in onnxruntime, keeping its cache, whatever the form."""

    def __init__(self, path: Path) -> None:
        """Load the file."""
        self.path = path
        options = ort.SessionOptions()
        options.intra_op_num_threads = min(4, os.cpu_count() or 1)
        options.log_severity_level = 4  # what fails is raised, not printed
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except _RUNTIME_ERRORS as error:
            raise ExportError(f"onnxruntime {ort.__version__} does not load {path.name}: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._unrolled = "attention_mask" in inputs
        self._counted = "past_length" in inputs
        free = {"batch_size": 1, "past": 0, "past_sequence_length": 0}
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._empty = {
            value.name: np.zeros([free.get(dim, dim) for dim in value.shape], types[value.type])
            for value in self._session.get_inputs()
            if re.match(r"past[._](?!length)", value.name)
        }
        self.reset()

    def reset(self) -> None:
        """Empty the cache."""
        self._past = dict(self._empty)
        self._length = 0

    def feed(self, token_ids: Tokens, logits_index: Tokens | None = None) -> Float32:
        """Run the next tokens and return logits `(N, V)`; all positions if no index is given."""
        index = np.arange(len(token_ids)) if logits_index is None else logits_index
        self._length += len(token_ids)
        mask = {"attention_mask": np.ones((1, self._length), np.int64)}
        besides = mask if self._unrolled else {"logits_index": index}
        if self._counted:
            besides["past_length"] = np.array([self._length - len(token_ids)], np.int64)
        try:
            results = self._session.run(self._outputs, {"input_ids": token_ids[None], **besides, **self._past})
        except _RUNTIME_ERRORS as error:
            raise ExportError(f"onnxruntime {ort.__version__} does not run the exported graph: {error}") from error
        self._past = dict(zip(self._past, results[1:], strict=True))  # inputs and outputs in the same order
        logits: Float32 = results[0][0][index] if self._unrolled else results[0]
        return logits


def prompt(architecture: Architecture, seed: int, length: int) -> Tokens:
    """Return `length` token ids drawn from a seed."""
    return np.random.default_rng(seed).integers(0, architecture.vocab_size, length)


def compare(runner: Runner, architecture: Architecture, tensors: Tensors, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Compare the file with the reference; raise where they disagree.

    Args:
        runner: The loaded file.
        architecture: What it should compute.
        tensors: The weights before rounding.
        recipe: How the file rounds them, and the bounds.
        seed: Of the prompt.

    Returns:
        `checked`, `max_abs_diff` (worst of all prompts), `logits_std`, `bound`, and `prompts`: how
        the tokens were fed and the difference of each. With `exact_bound`, `exact` has the same of
        the graph told to multiply in float32. Where products round activations, `rounding` is what that
        does by itself, and `bound` twice as much where that is more than the recipe's own.

    Raises:
        ExportError: the difference is above `bound` times `logits_std` and above `FLOAT32_STEPS`, or no number at all.
    """
    token_ids = prompt(architecture, seed, PROMPT_TOKENS)
    rounded = {name: recipe.rounded(tensor) for name, tensor in tensors.items()}
    with np.errstate(all="ignore"):  # what is no number is refused below
        expected = np.asarray(forward(architecture, rounded, token_ids))
    alone = _rounding_alone(architecture, rounded, token_ids, expected) if recipe.rounds_activations else 0.0
    if alone > MOST_ROUNDING:
        raise ExportError(
            f"with these weights, rounding activations to 8 bits alone moves the logits by {alone:.2g} of their "
            f"standard deviations; {recipe.name} allows {MOST_ROUNDING:g}",
            hint="these weights are too large for int8: use --recipe fp32",
            max_abs_diff=alone * float(expected.std()),
            logits_std=float(expected.std()),
        )
    exact: dict[str, Any] = {}
    if recipe.exact_bound is not None and isinstance(runner, FileRunner):
        with exact_graph(runner.path) as path:
            differences = _differences(FileRunner(path), token_ids, expected)
        exact = {"exact": _judge(differences, expected, recipe.exact_bound, f"{recipe.name}, multiplied in float32,")}
    found = _judge(
        _differences(runner, token_ids, expected),
        expected,
        max(recipe.parity_bound, ROUNDING_SLACK * alone),
        recipe.name,
    )
    return {"checked": True, **found, **exact, **({"rounding": alone} if recipe.rounds_activations else {})}


def _rounding_alone(architecture: Architecture, rounded: Tensors, token_ids: Tokens, expected: Float32) -> float:
    """Return what rounding activations does to the logits by itself, in their standard deviations; 0 if no number."""
    with np.errstate(all="ignore"):
        found = forward_with_rounded_activations(architecture, rounded, token_ids)
        share = float(np.abs(found - expected).max() / expected.std())
    return share if np.isfinite(share) else 0.0


def _differences(runner: Runner, token_ids: Tokens, expected: Float32) -> dict[str, float]:
    """Feed the tokens in several ways; return the largest difference of each."""
    differences = {}
    for name, sizes in _feedings(len(token_ids)):
        runner.reset()
        logits = np.concatenate([runner.feed(piece) for piece in np.split(token_ids, np.cumsum(sizes)[:-1])])
        with np.errstate(all="ignore"):
            differences[name] = float(np.abs(logits - expected).max())
    return differences


def _judge(differences: dict[str, float], expected: Float32, bound: float, what: str) -> dict[str, Any]:
    """Return the numbers of the manifest, or raise."""
    with np.errstate(all="ignore"):
        std = float(expected.std())
        least = FLOAT32_STEPS * float(np.spacing(np.abs(expected).max()))
    worst = float(np.max(list(differences.values())))  # NaN if any is
    if not worst <= max(bound * std, least):
        share = f"{worst / std:.2g}" if std > 0 else "unboundedly many"
        raise ExportError(
            f"the exported file disagrees with the reference: logits differ by up to {worst:.3g}, "
            f"{share} of their standard deviations; {what} allows {bound:g}",
            hint="weights with extreme values do not survive this recipe: try fp32",
            max_abs_diff=worst if np.isfinite(worst) else None,
            logits_std=std if np.isfinite(std) else None,
        )
    prompts = [{"fed": name, "tokens": len(expected), "max_abs_diff": diff} for name, diff in differences.items()]
    return {"max_abs_diff": worst, "logits_std": std, "bound": bound, "prompts": prompts}


@contextmanager
def exact_graph(path: Path) -> Iterator[Path]:
    """Write a copy of a graph, on the same weights, that multiplies in float32 and rounds no activation."""
    model = onnx.load(str(path), load_external_data=False)
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        nodes = [plain for node in graph.node for plain in _in_float32(node)]
        del graph.node[:]
        graph.node.extend(nodes)
        pending += [attribute.g for node in graph.node for attribute in node.attribute if attribute.name == "body"]
    copy = path.with_name(f".{path.stem}.exact{path.suffix}")
    try:
        copy.write_bytes(model.SerializeToString())
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _in_float32(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return nodes that compute the same without rounding their input; all others as they are."""
    make, cast = onnx.helper.make_node, f"{node.output[0]}.float32"
    if node.op_type == "DynamicQuantizeLinear":  # the values themselves, in steps of 1 from 0
        step, zero = (onnx.numpy_helper.from_array(np.array(v)) for v in (np.float32(1), np.uint8(0)))
        return [
            make("Identity", node.input, node.output[:1]),
            make("Constant", [], node.output[1:2], value=step),
            make("Constant", [], node.output[2:3], value=zero),
        ]
    if node.op_type == "MatMulInteger":
        return [
            make("Cast", [node.input[1]], [cast], to=onnx.TensorProto.FLOAT),
            make("MatMul", [node.input[0], cast], node.output),
        ]
    if node.op_type == "DynamicQuantizeMatMul":
        x, values, scale = node.input
        return [
            make("Cast", [values], [cast], to=onnx.TensorProto.FLOAT),
            make("MatMul", [x, cast], [f"{cast}.sums"]),
            make("Mul", [f"{cast}.sums", scale], node.output),
        ]
    for attribute in node.attribute:
        if attribute.name == "accuracy_level":
            attribute.i = FLOAT32_COMPUTE
    return [node]


def _feedings(tokens: int) -> Iterator[tuple[str, Sequence[int]]]:
    yield "whole", [tokens]
    yield "token by token", [1] * tokens
    yield "two pieces", [tokens // 3, tokens - tokens // 3]


def output_check(runner: Runner, architecture: Architecture, tolerance: float, seed: int) -> OutputCheck:
    """Return a prompt and the file's own largest logits after it, for the device to repeat.

    The tolerance is a share of these logits' standard deviation.

    Raises:
        ExportError: the file gives no numbers.
    """
    token_ids = prompt(architecture, seed + 1, CHECK_TOKENS)
    runner.reset()
    logits = runner.feed(token_ids, np.array([CHECK_TOKENS - 1]))[0]  # (V,)
    if not np.isfinite(logits).all():
        raise ExportError("the exported file gives logits that are no numbers", hint="check the weights' magnitudes")
    top = np.argsort(-logits, kind="stable")[:TOP]
    return OutputCheck(
        token_ids=tuple(int(t) for t in token_ids),
        top=tuple((int(t), float(logits[t])) for t in top),
        tolerance=max(tolerance * float(logits.std()), 1e-6),
    )
