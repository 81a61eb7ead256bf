"""Quantizers that do better than rounding to nearest, on inputs they have not seen, in the same file layout."""

from pathlib import Path

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.errors import ExportError, UsageError
from merino_edge.exporters.calibration import collect_hessians
from merino_edge.exporters.gptq import LEAST_DAMPING, ROWS, damping_for, round_with_gptq
from merino_edge.exporters.quantize import PAIR_LIMIT, QuantizedTensor, RoundedMatrix, quantize_blocks
from merino_edge.exporters.quantizers import QUANTIZERS, quantize_model
from merino_edge.exporters.recipes import RECIPES
from merino_edge.exporters.scales import best_scales, quantize_with_mse
from merino_edge.exporters.to_onnx import export
from merino_edge.exporting import ExportOptions
from merino_edge.reference import forward, gelu, random_tensors, rms_norm

SHARED = Architecture((Block(64, 2, 3), Block(128, 1, 1)), 32, 97, head_dim=32)
SKIP = Architecture((Block(64, 2, 3), Block(64, 1, 1)), 64, 97, head_dim=32, embedding_skip=True)
INT4 = RECIPES["weight_only_wi4_b32_afp32"]
HEAD8 = RECIPES["weight_only_wi4_b32_head8_afp32"]
TEXT = np.random.default_rng(5).integers(0, 97, 260)


def correlated(rng: np.random.Generator, mixing: np.ndarray, count: int) -> np.ndarray:
    """Inputs whose columns depend on one another, as those of trained layers do."""
    return (rng.standard_normal((count, len(mixing))) @ mixing).astype(np.float32)


def output_error(matrix: np.ndarray, quantized: QuantizedTensor, inputs: np.ndarray) -> float:
    return float(np.square(inputs @ (matrix - quantized.dequantize()).T).mean())


@pytest.mark.parametrize("block", [128, 64, 32])
def test_each_quantizer_leaves_less_error_on_inputs_it_has_not_seen(block: int) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((96, 128)).astype(np.float32)
    mixing = rng.standard_normal((128, 128)) * np.geomspace(1, 0.05, 128)[:, None]
    seen, unseen = correlated(rng, mixing, 1000), correlated(rng, mixing, 1000)
    hessian = seen.T.astype(np.float64) @ seen
    rtn = output_error(matrix, quantize_blocks(matrix, block, 4), unseen)
    mse = output_error(matrix, quantize_with_mse(matrix, block, 4), unseen)
    scale = best_scales(matrix, block, 4, np.diag(hessian))
    gptq = output_error(matrix, round_with_gptq(matrix, hessian, scale, 4), unseen)
    assert mse < rtn
    assert gptq < 0.5 * rtn


def test_scales_of_least_error_are_never_worse_than_those_of_the_largest_value() -> None:
    rng = np.random.default_rng(1)
    matrix = (rng.standard_normal((40, 64)) ** 3).astype(np.float32)
    matrix[3] = 0
    for block in (32, 64):
        errors = [
            np.square(matrix - q.dequantize()).reshape(40, -1, block).sum(-1)
            for q in (quantize_with_mse(matrix, block, 4), quantize_blocks(matrix, block, 4))
        ]
        assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_without_correlation_gptq_rounds_to_nearest() -> None:
    matrix = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    nearest = quantize_blocks(matrix, 32, 4)
    rounded = round_with_gptq(matrix, np.eye(64), nearest.scale, 4)
    np.testing.assert_array_equal(rounded.values, nearest.values)


def test_gptq_leaves_each_later_input_where_least_squares_puts_it() -> None:
    """The update from its definition: after each rounding the rest is solved for anew."""
    rng = np.random.default_rng(11)
    matrix = rng.standard_normal((3, 8)).astype(np.float32)
    inputs = correlated(rng, rng.standard_normal((8, 8)), 50).astype(np.float64)
    hessian, scale = inputs.T @ inputs, np.full((3, 1), 0.3, np.float32)
    damped = hessian + 0.05 * np.diag(hessian).mean() * np.eye(8)
    order = np.argsort(-np.diag(hessian))
    expected = np.zeros((3, 8))
    for row in range(3):
        for done in range(8):  # inputs order[:done] are rounded; the others make up for their errors
            fixed, free = order[:done], order[done:]
            errors = matrix[row, fixed] - scale[row, 0] * expected[row, fixed]
            moved = np.linalg.solve(damped[np.ix_(free, free)], damped[np.ix_(free, fixed)] @ errors)
            expected[row, free[0]] = np.clip(np.rint((matrix[row, free[0]] + moved[0]) / scale[row, 0]), -8, 7)
    found = round_with_gptq(matrix, hessian, scale, 4, 0.05)
    np.testing.assert_array_equal(found.values, expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [32, 128])
def test_gptq_never_leaves_a_larger_error_on_its_own_text_than_rounding_to_nearest(block: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = (rng.standard_normal((40, 128)) * rng.lognormal(0, 0.5, 128)).astype(np.float32)
    inputs = correlated(rng, rng.standard_normal((128, 128)) * rng.lognormal(0, 1, 128)[:, None], 400)
    hessian = inputs.T.astype(np.float64) @ inputs
    scale = best_scales(matrix, block, 4, np.diag(hessian))
    chosen = output_error(matrix, round_with_gptq(matrix, hessian, scale, 4), inputs)
    assert chosen <= output_error(matrix, quantize_blocks(matrix, block, 4), inputs)


def test_rows_are_rounded_alike_however_many_there_are() -> None:
    rng = np.random.default_rng(12)
    matrix = rng.standard_normal((ROWS + 3, 32)).astype(np.float32)
    inputs = correlated(rng, rng.standard_normal((32, 32)), 100)
    hessian, scale = inputs.T.astype(np.float64) @ inputs, quantize_blocks(matrix, 32, 4).scale
    whole = round_with_gptq(matrix, hessian, scale, 4)
    last = round_with_gptq(matrix[-5:], hessian, scale[-5:], 4)
    assert (whole.values[-5:] != last.values).mean() < 0.01  # sums of another order may fall on another side
    assert np.abs(whole.values[-5:].astype(int) - last.values).max() <= 1


def test_less_text_is_damped_more() -> None:
    assert damping_for(768, 8192) == 2 * 768 / 8192
    assert damping_for(768, 1 << 20) == LEAST_DAMPING
    assert damping_for(768, 512) > 1


def test_gptq_takes_a_text_that_hardly_shows_some_inputs() -> None:
    matrix = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    scale = quantize_blocks(matrix, 32, 4).scale
    for hessian in (np.zeros((64, 64)), np.diag(np.arange(64.0) // 32), np.ones((64, 64))):
        rounded = round_with_gptq(matrix, hessian, scale, 4)
        assert -8 <= rounded.values.min() <= rounded.values.max() <= 7


def test_gptq_keeps_neighbours_in_rows_of_8_bits_within_16_bits() -> None:
    options = ExportOptions(quantizer="gptq", calibration=np.concatenate([TEXT, TEXT]))
    rounded, _ = quantize_model(SHARED, random_tensors(SHARED, 0), RECIPES["dynamic_wi8_afp32"], options)
    matrices = [tensor.quantized.values for tensor in rounded.values() if isinstance(tensor, RoundedMatrix)]
    assert len(matrices) == sum(len(shape) == 2 for shape in SHARED.tensor_shapes.values())
    sums = [np.abs(values[:, ::2].astype(int) + values[:, 1::2]).max() for values in matrices]
    assert max(sums) == PAIR_LIMIT


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_text_that_gives_no_numbers_is_refused() -> None:
    matrix = np.ones((4, 32), np.float32)
    with pytest.raises(ExportError, match="no numbers") as caught:
        round_with_gptq(matrix, np.full((32, 32), np.nan), np.ones((4, 1), np.float32), 4)
    assert "--quantizer rtn" in str(caught.value.hint)


def test_a_shared_matrix_meets_the_inputs_of_every_layer_that_calls_it() -> None:
    tensors = random_tensors(SHARED, 0, scale=0.1)
    token_ids = TEXT[:24]
    hessians = collect_hessians(SHARED, tensors, token_ids, window=24)
    states = [tensors["embedding.weight"][token_ids] @ tensors["blocks.0.projection.weight"].T]
    one_layer = {name: t for name, t in tensors.items() if name.startswith("blocks.0")}
    for _ in range(2):  # each layer of block 0 by itself, from what the one before left
        states.append(layer_output(one_layer, states[-1]))
    gain = tensors["blocks.0.norms"][0, 0]
    expected = sum(rms_norm(x, gain).T @ rms_norm(x, gain) for x in states) / len(token_ids)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(hessians[f"blocks.0.{name}.weight"], expected, rtol=1e-4, atol=1e-5)
    assert set(hessians) == {name for name, t in tensors.items() if t.ndim == 2}


def layer_output(tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """One layer of block 0 of SHARED, written out once more."""
    from merino_edge.reference import attend, rotate

    w = {name.split(".")[2]: t for name, t in tensors.items()}
    h = rms_norm(x, w["norms"][0, 0])
    q, k, v = ((h @ w[n].T).reshape(len(x), 2, 32) for n in ("query", "key", "value"))
    x = x + attend(rotate(q, 0), rotate(k, 0), v) @ w["output"].T
    return x + gelu(rms_norm(x, w["norms"][0, 1]) @ w["ffn_in"].T) @ w["ffn_out"].T


def test_a_rounded_matrix_is_written_with_the_integers_it_brings() -> None:
    quantized = quantize_with_mse(np.random.default_rng(4).standard_normal((6, 64)).astype(np.float32), 32, 4)
    matrix = RoundedMatrix(quantized)
    assert quantize_blocks(matrix, 32, 4) is quantized
    np.testing.assert_array_equal(matrix, quantized.dequantize())
    assert quantize_blocks(matrix[:3], 32, 4) is not quantized  # a part is another matrix
    assert (matrix + 0).quantized is None


@pytest.mark.parametrize("recipe", [INT4, HEAD8], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("architecture", [SHARED, SKIP], ids=["shared", "skip"])
def test_every_quantizer_gives_a_file_that_computes_what_its_integers_say(
    architecture: Architecture, quantizer: str, recipe: object, tmp_path: Path
) -> None:
    options = ExportOptions(quantizer=quantizer, calibration=TEXT)
    tensors = random_tensors(architecture, 0, scale=0.05)
    tensors = {n: 20 * t if n.endswith("skip_gains") else t for n, t in tensors.items()}  # a skip that does much
    result = export(architecture, tensors, tmp_path, recipe.name, options)  # type: ignore[attr-defined]
    assert result.quantizer == quantizer
    assert result.parity["exact"]["max_abs_diff"] <= 1e-4 * result.parity["logits_std"]
    stored = sum((tmp_path / name).stat().st_size for name in result.files)
    assert result.unique_bytes <= stored <= 1.01 * result.unique_bytes + 4096 * len(architecture.tensor_shapes)


def test_the_same_text_gives_the_same_file_twice(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        options = ExportOptions(quantizer="gptq", calibration=TEXT, parity=False)
        export(SHARED, random_tensors(SHARED, 0), tmp_path / folder, INT4.name, options)
    assert (tmp_path / "a" / "model.data").read_bytes() == (tmp_path / "b" / "model.data").read_bytes()


def test_gptq_keeps_the_logits_nearer_on_another_text() -> None:
    tensors = random_tensors(SHARED, 1, scale=0.05)
    other = np.random.default_rng(9).integers(0, 97, 64)
    expected = forward(SHARED, tensors, other)
    errors = {}
    for quantizer in ("rtn", "gptq"):
        options = ExportOptions(quantizer=quantizer, calibration=np.random.default_rng(8).integers(0, 97, 1024))
        rounded, _ = quantize_model(SHARED, tensors, INT4, options)
        plain = {name: INT4.rounded(np.asarray(t) if quantizer == "rtn" else t) for name, t in rounded.items()}
        errors[quantizer] = np.square(forward(SHARED, plain, other) - expected).mean()
    assert errors["gptq"] < 0.8 * errors["rtn"]


def test_the_token_table_is_rounded_by_what_the_head_meets() -> None:
    tensors = random_tensors(SHARED, 1, scale=0.05)
    text = np.random.default_rng(8).integers(0, 97, 2048)
    head = collect_hessians(SHARED, tensors, text, window=256)["embedding.weight"]
    stored, _ = quantize_model(SHARED, tensors, INT4, ExportOptions(quantizer="gptq", calibration=text))
    order = np.argsort(np.square(tensors["embedding.weight"]).mean(0), kind="stable")
    table = np.empty_like(tensors["embedding.weight"])
    table[:, order] = stored["embedding.weight"]
    errors = [
        np.einsum("vi,ij,vj->", change, head, change)
        for change in (
            table - tensors["embedding.weight"],
            INT4.rounded(tensors["embedding.weight"]) - tensors["embedding.weight"],
        )
    ]
    assert errors[0] < 0.8 * errors[1]


def test_auto_takes_gptq_where_there_is_text() -> None:
    tensors = random_tensors(SHARED, 0)
    for recipe, text, expected in (
        (INT4, TEXT, "gptq"),
        (INT4, TEXT[:10], "mse"),
        (INT4, None, "mse"),
        (RECIPES["weight_only_wi8_b32_afp32"], TEXT, "rtn"),
        (RECIPES["dynamic_wi8_afp32"], TEXT, "rtn"),
        (RECIPES["fp32"], TEXT, None),
    ):
        options = ExportOptions(quantizer="auto", calibration=text)
        assert quantize_model(SHARED, tensors, recipe, options)[1] == expected


@pytest.mark.parametrize(
    ("recipe", "quantizer", "text", "words", "hint"),
    [
        (INT4, "gtpq", TEXT, "did you mean 'gptq'", "rtn"),
        (INT4, "gptq", None, "needs at least 256 tokens", "--text PATH"),
        (RECIPES["fp32"], "gptq", TEXT, "no integers", "leave --quantizer out"),
    ],
)
def test_a_quantizer_that_cannot_be_used_says_why(
    recipe: object, quantizer: str, text: np.ndarray | None, words: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        quantize_model(SHARED, random_tensors(SHARED, 0), recipe, ExportOptions(quantizer=quantizer, calibration=text))  # type: ignore[arg-type]
    assert hint in str(caught.value.hint)
