"""Reading a checkpoint folder without torch: the architecture, the tensors, the tokenizer.

A checkpoint is a Hugging Face folder as `training/model.py` writes it: `config.json` (the
`Architecture` under `architecture`, `trained_tokens`, `max_position_embeddings`),
`model.safetensors` with each shared tensor once under the names of
`Architecture.tensor_shapes`, `tokenizer.json`. Nothing is ever unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy bfloat16, which safetensors then reads
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from merino_edge.architecture import Architecture, check_tensors
from merino_edge.bundle import TOKENIZER
from merino_edge.errors import InvalidFileError, next_step
from merino_edge.files import parse_json, read_text

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_WEIGHT_TYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights and what belongs to them.

    Attributes:
        folder: Where it lies.
        architecture: From `config.json`.
        tensors: Float32, by the names of `architecture.tensor_shapes`.
        trained_tokens: Tokens seen in training.
        context_length: Tokens of one training sequence.
        tokenizer: Path of `tokenizer.json`, or None where there is none.
    """

    folder: Path
    architecture: Architecture
    tensors: dict[str, npt.NDArray[np.float32]]
    trained_tokens: int
    context_length: int
    tokenizer: Path | None


def is_checkpoint(folder: Path) -> bool:
    """Say whether a folder holds a checkpoint (complete or not)."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture and the whole `config.json` of a checkpoint."""
    path = folder / CONFIG
    if not path.exists():
        raise InvalidFileError(f"checkpoint {folder} has no {CONFIG}", hint="train with: merino-edge train")
    with next_step("copy the checkpoint again, or train again"):
        config = parse_json(read_text(path, "checkpoint"), f"checkpoint {path}")
        if "architecture" not in config:
            raise InvalidFileError(f"{path} describes no MeRino model: key 'architecture' is missing")
        return Architecture.from_json(config["architecture"], f"checkpoint {path}"), config


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint whole, checking names, shapes and that every weight is a finite number."""
    architecture, config = read_config(folder)
    path = folder / WEIGHTS
    tensors = read_safetensors(path)
    with next_step(f"{CONFIG} and {WEIGHTS} do not belong together: copy both again, or train again"):
        check_tensors(architecture, {name: t.shape for name, t in tensors.items()}, f"checkpoint {path}")
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InvalidFileError(f"checkpoint {path}: tensor '{name}' holds NaN or infinity", hint="train again")
    tokenizer = folder / TOKENIZER
    numbers = {}
    for key, default, least in (("trained_tokens", 0, 0), ("max_position_embeddings", 1024, 1)):
        number = config.get(key, default)
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise InvalidFileError(f"checkpoint {folder / CONFIG}: {key} must be a whole number, not {number!r}")
        numbers[key] = number
    return Checkpoint(
        folder=folder,
        architecture=architecture,
        tensors=tensors,
        trained_tokens=numbers["trained_tokens"],
        context_length=numbers["max_position_embeddings"],
        tokenizer=tokenizer if tokenizer.is_file() else None,
    )


def read_safetensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read every tensor of a safetensors file as float32 (bfloat16 widened exactly)."""
    where = f"checkpoint {path}"
    again = "the file is damaged: copy it again, or train again"
    if not path.is_file():
        raise InvalidFileError(f"{where} does not exist", hint="train with: merino-edge train")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise InvalidFileError(f"{where} is truncated or not a safetensors file: {error}", hint=again) from error
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _WEIGHT_TYPES:
            raise InvalidFileError(f"{where}: tensor '{name}' is {tensor.dtype.name}, which is no weight type")
    with np.errstate(over="ignore"):  # what does not fit becomes infinity, which the caller refuses
        return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
