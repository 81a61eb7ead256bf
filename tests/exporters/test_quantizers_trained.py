"""On a model trained for seconds, on text it has not seen: what GPTQ leaves of the logits."""

from pathlib import Path

import numpy as np
import pytest

from merino_edge.architecture import Architecture, Block
from merino_edge.checkpoint import Checkpoint, read_checkpoint
from merino_edge.exporters.quantizers import quantize_model
from merino_edge.exporters.recipes import RECIPES
from merino_edge.exporting import ExportOptions
from merino_edge.reference import forward

pytestmark = pytest.mark.timeout(400)  # importing torch and its friends takes minutes on a busy machine

ARCHITECTURE = Architecture((Block(64, 2, 2), Block(128, 1, 1)), 64, 300, head_dim=32)
WORDS = ("small", "large", "red", "green", "bird", "dog", "tree", "river", "sings", "runs", "sleeps", "falls", "near")


def write_text(path: Path) -> Path:
    """Sentences of a small grammar, so that seconds of training are enough to learn something."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(3000):
        picked = [WORDS[i] for i in rng.integers(0, len(WORDS), 3)]
        lines.append(f"The {picked[0]} {picked[1]} and the {picked[1]} {picked[0]} by the {picked[2]}.\n\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, np.ndarray]:
    """A checkpoint and its held-out tokens."""
    pytest.importorskip("torch")
    from merino_edge.training.request import TrainRequest
    from merino_edge.training.train import train

    folder = tmp_path_factory.mktemp("trained")
    text = write_text(folder / "text.txt")
    request = TrainRequest(
        ARCHITECTURE, folder / "checkpoint", (str(text),), steps=40, tokens_per_batch=1024, context_length=64,
        token_folder=folder / "tokens", threads=1,
    )  # fmt: skip
    train(request)
    return read_checkpoint(folder / "checkpoint"), np.load(folder / "checkpoint" / "validation_tokens.npy")


@pytest.mark.parametrize("block", [64, 32])
def test_gptq_keeps_the_logits_of_a_trained_model_nearer_than_rounding_to_nearest(
    trained: tuple[Checkpoint, np.ndarray], block: int
) -> None:
    checkpoint, tokens = trained
    unseen, calibration = tokens[:256], tokens[-1024:]
    assert len(tokens) >= len(unseen) + len(calibration)
    recipe = RECIPES[f"weight_only_wi4_b{block}_afp32"]
    expected = forward(ARCHITECTURE, checkpoint.tensors, unseen)
    errors = {}
    for quantizer in ("rtn", "gptq"):
        options = ExportOptions(quantizer=quantizer, calibration=calibration)
        stored, _ = quantize_model(ARCHITECTURE, checkpoint.tensors, recipe, options)
        rounded = {name: recipe.rounded(tensor) for name, tensor in stored.items()}
        errors[quantizer] = float(np.square(forward(ARCHITECTURE, rounded, unseen) - expected).mean())
    assert errors["gptq"] < 0.9 * errors["rtn"]
