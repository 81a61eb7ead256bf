"""What a training budget means for a search: the weight of depth in the entropy, and the loss to expect.

All numbers come from the study of trained block-shared decoders (`bench/proxy_study.py --stats`, which
computes them again), and hold where it looked: 3 to 32 million training tokens a model, one width a
model, a vocabulary of 4,096, windows of 512 tokens of encyclopedia, news and novels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from merino_edge.architecture import Architecture
from merino_edge.search.cost import parameters_sum, total
from merino_edge.search.space import Space

STUDIED_TOKENS = (2_998_272, 31_997_952)
STUDIED_DECODER_PARAMETERS = (1_575_168, 27_138_816)
STUDIED_DEPTH = (4, 12)
STUDIED_VOCAB_SIZE = 4096
STUDY_BETA = 0.44
"""Fitted on the lowest and the highest budget; between them the best beta did not move."""

LOSS = {
    "intercept": 26.494932,
    "ln_decoder_parameters": -0.072228,
    "ln_depth": 0.06415,
    "ln_tokens": -2.235588,
    "ln_tokens_squared": 0.055813,
}
LOSS_INTERVAL = 0.06328
"""nats: nine of ten trainings left out of the fit lie within."""


def largest_beta(space: Space) -> float:
    """Return a beta, in hundredths, up to which gamma stays below 1 throughout a space.

    gamma is largest where every layer is of the least width and every depth the greatest.
    """
    depth = sum(max(choices.depths) for choices in space.blocks)
    options = {id(some): some for group in space.groups for some in group.options}  # groups share them
    least = min(min(block.width, block.ffn_width) for some in options.values() for block in some)
    return max(0.0, math.ceil(100 * math.log(least) / depth - 1) / 100)


def study_beta(space: Space) -> float:
    """Return the study's beta, or less where it would leave the formula's domain somewhere in the space."""
    return min(STUDY_BETA, largest_beta(space))


def is_studied(train_tokens: int) -> bool:
    """Say whether the study trained for about so long."""
    return STUDIED_TOKENS[0] <= train_tokens <= STUDIED_TOKENS[1]


@dataclass(frozen=True)
class ExpectedLoss:
    """Validation loss that an architecture should reach, in nats a token of the study's text."""

    nats: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return the JSON object."""
        return {"nats_per_token": self.nats, "low": self.low, "high": self.high, "coverage": 0.9}


def expected_loss(architecture: Architecture, train_tokens: int) -> ExpectedLoss | None:
    """Return the loss to expect after so many tokens, with its interval; None where the study says nothing."""
    a = architecture
    parameters = float(total(parameters_sum(per_layer_norms=False, table=False), a))
    one_width = {block.width for block in a.blocks} == {a.embedding_width}
    inside = (
        is_studied(train_tokens)
        and STUDIED_DECODER_PARAMETERS[0] <= parameters <= STUDIED_DECODER_PARAMETERS[1]
        and STUDIED_DEPTH[0] <= a.depth <= STUDIED_DEPTH[1]
    )
    if not (inside and one_width and a.vocab_size == STUDIED_VOCAB_SIZE):
        return None
    tokens = math.log(train_tokens)
    terms = (1.0, math.log(parameters), math.log(a.depth), tokens, tokens**2)
    nats = sum(weight * term for weight, term in zip(LOSS.values(), terms, strict=True))
    return ExpectedLoss(nats, nats - LOSS_INTERVAL, nats + LOSS_INTERVAL)
