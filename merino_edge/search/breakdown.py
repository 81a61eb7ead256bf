"""Which part of a prediction belongs to which kind of layer: the terms of a fitted sum, put together anew.

A latency model is a sum of costs times coefficients, and so is each kind of layer's share of it: products, bytes read
and launches of attention, of the feed-forward network, of the head. The shares add up to the prediction.
"""

from __future__ import annotations

import numpy as np

from merino_edge.architecture import Architecture, Block
from merino_edge.search.cost import KvBytes, bytes_sum, matrix_bytes, table_bytes, total
from merino_edge.search.fitting import FloatArray
from merino_edge.search.latency import FEATURES, LatencyModel
from merino_edge.search.memory import MemoryModel

LAYER_KINDS = ("attention", "ffn", "scores", "projection", "head", "launch", "constant")
_BYTES = [FEATURES.index(f"weight_bytes_{kind}") for kind in ("once", "again", "cached", "evicted")]


def latency_by_kind(model: LatencyModel, architecture: Architecture) -> dict[str, float]:
    """Return the milliseconds of each kind of layer; together what `predict_ms` says.

    Bytes of a block are shared out between attention and feed-forward network by the size of their matrices, and so is
    what a model takes longer because it does not stay in the cache as a whole; the scores take what keys and values do.
    """
    parts = dict.fromkeys(LAYER_KINDS, 0.0)
    for i in range(len(architecture.blocks)):
        for kind, ms in latency_of_block(model, architecture, i).items():
            parts[kind] += ms
    width = np.array([architecture.blocks[-1].width])
    ends = _terms(model, model.features.ends(width, architecture.embedding_width, architecture.vocab_size)[:, 0])
    parts["head"] += _named(ends, "head_macs")
    parts["constant"] += _named(ends, "constant")
    parts["projection"] += _named(ends, "ffn_macs") + _named(ends, "weight_bytes_once")
    table = float(table_bytes(model.recipe)(architecture.vocab_size, architecture.embedding_width))
    in_blocks = sum(sum(_matrices(model.recipe, block)) for block in architecture.blocks)
    stored = float(total(model.features.held[0], architecture))
    missed, _ = model.missed_ms_of(architecture)
    parts["head"] += missed * table / stored
    parts["projection"] += missed * (stored - in_blocks - table) / stored
    return parts


def latency_of_block(model: LatencyModel, architecture: Architecture, block: int) -> dict[str, float]:
    """Return the milliseconds of each kind of layer in one block and the projection before it.

    Of what a model takes longer because it does not stay in the cache as a whole, a block has the share of its matrices
    and of its keys and values.
    """
    shape = architecture.blocks[block]
    attention, ffn = _matrices(model.recipe, shape)
    share = attention / (attention + ffn)
    arrays = tuple(np.array([float(v)]) for v in (shape.width, shape.ffn_width, shape.depth))
    terms = _terms(model, model.features.blocks(*arrays)[:, 0])
    seam = model.features.seams(np.array([float(architecture.input_width(block))]), np.array([float(shape.width)]))
    missed, missed_kv = model.missed_ms_of(architecture)
    stored, kv = (float(total(quantity, architecture)) for quantity in model.features.held)
    read = float(terms[_BYTES].sum()) + missed * (attention + ffn) / stored
    own_kv = float(model.features.held[1].blocks(*arrays).sum())
    return {
        "attention": _named(terms, "attention_macs") + share * read,
        "ffn": _named(terms, "ffn_macs") + (1 - share) * read,
        "scores": _named(terms, "score_macs") + _named(terms, "kv_bytes") + missed_kv * own_kv / kv,
        "projection": float(_terms(model, seam[:, 0]).sum()),
        "launch": _named(terms, "layers"),
    }


def _matrices(recipe: str, block: Block) -> tuple[float, float]:
    """Return the bytes of a block's matrices: attention, and feed-forward network."""
    size = matrix_bytes(recipe)
    return 4.0 * size(block.width, block.width), size(block.ffn_width, block.width) + size(block.width, block.ffn_width)


def memory_by_kind(model: MemoryModel, architecture: Architecture) -> dict[str, float]:
    """Return the bytes of runtime, weights, token table and cache; together what `predict_bytes` says."""
    per_byte = dict(zip(("weights", "table", "cache", "runtime"), model.coefficients, strict=True))
    table = float(table_bytes(model.recipe)(architecture.vocab_size, architecture.embedding_width))
    stored = float(total(bytes_sum(model.recipe, per_layer_norms=False), architecture))
    cache = float(total(KvBytes(model.context_length), architecture))
    amounts = {"runtime": 1.0, "weights": stored - table, "table": table, "cache": cache}
    return {kind: per_byte[kind] * amount for kind, amount in amounts.items()}


def _terms(model: LatencyModel, features: FloatArray) -> FloatArray:
    return np.asarray(np.array(model.coefficients) * features, np.float64)


def _named(terms: FloatArray, feature: str) -> float:
    return float(terms[FEATURES.index(feature)])
