"""A trained model whose probabilities another one learns from beside the text: distillation (Hinton et al. 2015).

The teacher is a checkpoint of ours with the student's tokens. It is looked at in every step and never trained;
nothing of it is saved with the student but what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from merino_edge.bundle import TOKENIZER
from merino_edge.checkpoint import WEIGHTS, read_config
from merino_edge.errors import DataError, InvalidFileError
from merino_edge.files import sha256_file
from merino_edge.training.data import TokenData
from merino_edge.training.evaluate import load_model
from merino_edge.training.model import MerinoForCausalLM
from merino_edge.training.request import Report, TrainRequest

FOREIGN = "name a run, or a checkpoint folder that merino-edge train wrote"


@dataclass(frozen=True)
class Teacher:
    """A frozen model, and how much the loss listens to it.

    Attributes:
        model: In evaluation mode, without gradients.
        share: Of the loss, above 0 and up to 1; the text has the rest.
        sha256: Of its weights.
    """

    model: MerinoForCausalLM
    share: float
    sha256: str

    def place(self, compiled: bool) -> None:
        """Move it to the device that the student is trained on, and compile its layers as the student's."""
        if torch.cuda.is_available():
            self.model.to(torch.device("cuda"))  # type: ignore[arg-type]  # transformers types its wrapper wrongly
        if compiled:
            self.model.compile_parts()

    @torch.no_grad()
    def look(self, input_ids: Tensor) -> tuple[Tensor, float]:
        """Return the logits `(B, T, V)` for tokens `(B, T)`, and the share, as the student's loss wants them."""
        return self.model(input_ids).logits, self.share

    def facts(self) -> dict[str, Any]:
        """Return what a record says of it."""
        config = self.model.config
        return {
            "sha256": self.sha256,
            "architecture": config.merino.describe(),
            "parameters": config.merino.unique_parameters,
            "trained_tokens": config.trained_tokens,
            "share": self.share,
        }


def check_teacher(request: TrainRequest) -> None:
    """Refuse a teacher that cannot be one, before any text is read.

    Raises:
        InvalidFileError: the folder is no checkpoint of ours.
        DataError: its vocabulary is of another size.
    """
    if request.teacher is None:
        return
    try:
        architecture, _ = read_config(request.teacher)
    except InvalidFileError as error:
        raise InvalidFileError(f"the teacher cannot be used: {error.message}", hint=FOREIGN) from error
    for name in (WEIGHTS, TOKENIZER):
        if not (request.teacher / name).is_file():
            raise InvalidFileError(f"the teacher {request.teacher} has no {name}", hint=FOREIGN)
    if architecture.vocab_size != request.architecture.vocab_size:
        raise DataError(
            f"the teacher {request.teacher} has a vocabulary of {architecture.vocab_size}, the architecture "
            f"{request.architecture.vocab_size}",
            hint=f"search with --vocab {architecture.vocab_size}, or name another teacher",
        )


def open_teacher(request: TrainRequest, data: TokenData, report: Report) -> Teacher | None:
    """Load the teacher that a request names, on the processor; None where it names none.

    Raises:
        DataError: its tokenizer is not that of the tokens.
        InvalidFileError: the checkpoint is damaged.
    """
    if request.teacher is None:
        return None
    assert request.teacher_share is not None
    if _tokenizer(request.teacher / TOKENIZER) != _tokenizer(data.tokenizer):
        raise DataError(
            f"the teacher {request.teacher} has another tokenizer than the training text {data.source}",
            hint=f"give the text itself with --tokenizer {request.teacher / TOKENIZER}, or name another teacher",
        )
    model = load_model(request.teacher)
    model.requires_grad_(False)
    longest = model.config.max_position_embeddings
    if longest < request.context_length:
        report({"note": f"the teacher was trained on contexts of {longest}, less than {request.context_length}"})
    return Teacher(model, request.teacher_share, sha256_file(request.teacher / WEIGHTS))


def _tokenizer(path: Path) -> str:
    """Return a tokenizer's content, however its file is laid out."""
    try:
        text: str = Tokenizer.from_file(str(path)).to_str()
    except Exception as error:  # tokenizers raises bare Exception for what it cannot read
        raise InvalidFileError(f"tokenizer {path} cannot be read: {error}", hint="copy it again") from error
    return text
