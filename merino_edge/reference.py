"""The model in numpy: short, slow, and what every export must agree with.

Nothing is fused or cached cleverly, so that each line can be held against `architecture.py` and
the paper. Shapes: T tokens, E width, H heads, D head_dim, P positions in the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from merino_edge.architecture import NORM_EPSILON, ROPE_THETA, Architecture

Array = npt.NDArray[Any]  # floating, one dtype throughout


def random_tensors(architecture: Architecture, seed: int, scale: float = 0.02) -> dict[str, npt.NDArray[np.float32]]:
    """Draw untrained weights: N(0, scale^2), norm gains 1. Same seed, same tensors.

    Returns:
        Every tensor of `architecture.tensor_shapes`, float32.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in architecture.tensor_shapes.items():
        if name.endswith("norms") or name.startswith("final_norm"):
            tensors[name] = np.ones(shape, np.float32)
        else:
            tensors[name] = rng.standard_normal(shape, np.float32) * np.float32(scale)
    return tensors


@dataclass
class Cache:
    """Rotated keys and values of each executed layer, `(P, H, D)` each."""

    keys: list[Array] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)

    @property
    def length(self) -> int:
        """P, positions held."""
        return len(self.keys[0]) if self.keys else 0


def rms_norm(x: Array, gain: Array) -> Array:
    """Return x / rms(x) * gain over the last axis (Zhang and Sennrich 2019)."""
    normed: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + NORM_EPSILON)
    return normed * gain


def gelu(x: Array) -> Array:
    """Return x * Phi(x), exact (Hendrycks and Gimpel 2016)."""
    share: Array = 0.5 * (1 + erf(x / np.sqrt(2.0).astype(x.dtype)))
    return x * share


def rotate(x: Array, start: int) -> Array:
    """Turn each head by its position (Su et al. 2021), first half with second half.

    Args:
        x: `(T, H, D)`, tokens at positions `start .. start + T - 1`.
        start: Position of the first token.
    """
    half = x.shape[-1] // 2
    frequency = ROPE_THETA ** (-np.arange(half, dtype=np.float64) / half)
    angle = np.arange(start, start + len(x))[:, None] * frequency  # (T, D/2)
    cos, sin = (f(angle)[:, None, :].astype(x.dtype) for f in (np.cos, np.sin))
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q: Array, k: Array, v: Array) -> Array:
    """Causal softmax attention of the last T of P positions.

    Args:
        q: `(T, H, D)`.
        k: `(P, H, D)`.
        v: `(P, H, D)`.

    Returns:
        `(T, H * D)`.
    """
    tokens, positions = len(q), len(k)
    scores = q.transpose(1, 0, 2) @ k.transpose(1, 2, 0) / np.sqrt(q.shape[-1]).astype(q.dtype)  # (H, T, P)
    hidden = np.arange(positions)[None, :] > np.arange(positions - tokens, positions)[:, None]
    scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: Array = weights @ v.transpose(1, 0, 2)  # (H, T, D)
    return mixed.transpose(1, 0, 2).reshape(tokens, -1)


def forward(
    architecture: Architecture,
    tensors: Mapping[str, Array],
    token_ids: Sequence[int] | npt.NDArray[np.integer],
    logits_index: Sequence[int] | npt.NDArray[np.integer] | None = None,
    cache: Cache | None = None,
) -> Array:
    """Compute the logits of one sequence.

    Args:
        architecture: The model.
        tensors: Its tensors, by the names of `architecture.tensor_shapes`, all of one dtype.
        token_ids: `(T,)` the new tokens.
        logits_index: `(N,)` positions among the new tokens whose logits are wanted; all if None.
        cache: Keys and values of the tokens before; extended in place.

    Returns:
        `(N, V)` logits.
    """
    cache = Cache() if cache is None else cache
    start, first_call = cache.length, not cache.keys
    x = tensors["embedding.weight"][np.asarray(token_ids)]  # (T, E)
    skipped = x  # set anew where the first layer begins
    for number, (i, layer) in enumerate(architecture.layers()):
        w = {n: tensors[f"blocks.{i}.{n}.weight"] for n in ("query", "key", "value", "output", "ffn_in", "ffn_out")}
        gains = tensors[f"blocks.{i}.norms"][layer if architecture.per_layer_norms else 0]  # (2, E)
        if layer == 0 and f"blocks.{i}.projection.weight" in tensors:
            x = x @ tensors[f"blocks.{i}.projection.weight"].T
        if architecture.embedding_skip:
            if number == 0:
                skipped = rms_norm(x, np.ones(1, x.dtype))
            x = x + tensors[f"blocks.{i}.skip_gains"][layer] * skipped
        h = rms_norm(x, gains[0])
        q, k, v = (
            (h @ w[n].T).reshape(len(x), architecture.heads(i), architecture.head_dim)
            for n in ("query", "key", "value")
        )
        q, k = rotate(q, start), rotate(k, start)
        if first_call:
            cache.keys.append(k)
            cache.values.append(v)
        else:
            cache.keys[number] = np.concatenate([cache.keys[number], k])
            cache.values[number] = np.concatenate([cache.values[number], v])
        x = x + attend(q, cache.keys[number], cache.values[number]) @ w["output"].T
        h = rms_norm(x, gains[1])
        x = x + gelu(h @ w["ffn_in"].T) @ w["ffn_out"].T
    if logits_index is not None:
        x = x[np.asarray(logits_index)]
    x = rms_norm(x, tensors["final_norm.weight"])
    if "output_projection.weight" in tensors:
        x = x @ tensors["output_projection.weight"].T
    return x @ tensors["embedding.weight"].T
