"""Which models the study trains, for how long, and at which learning rate.

Groups: `equal` (one FLOPs level, +-5 %), `equal-large` (a second level, for scale), `free` (all over the
poster's space), `steps` (widths that change between blocks, judged apart), `sweep` and `lr` (the learning
rate), `seed` (second seeds). Members are picked by a greedy maximin rule, so every prefix is well spread.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from merino_edge.architecture import Architecture, Block
from merino_edge.search.cost import count_flops, parameters_sum, total
from merino_edge.search.space import load_space

VOCAB_SIZE = 4096
EQUAL_FLOPS = 28e9
LARGE_FLOPS = 64e9
FLOPS_BAND = 0.05
FREE_FLOPS = (9e9, 110e9)
COUNTS = {"equal": 28, "equal-large": 10, "free": 26}


def decoder_parameters(architecture: Architecture) -> int:
    """Unique parameters without the token table."""
    return int(total(parameters_sum(per_layer_norms=False, table=False), architecture))


def features(architecture: Architecture) -> tuple[float, ...]:
    """What the choice is spread over."""
    ratio = sum(b.ffn_ratio * b.depth for b in architecture.blocks) / architecture.depth
    return (
        math.log(architecture.embedding_width),
        architecture.depth / 8,
        ratio / 4,
        0.7 * math.log(decoder_parameters(architecture)),
        math.log(count_flops(architecture)),
    )


def spread(pool: list[Architecture], count: int) -> list[Architecture]:
    """Pick members one by one, each the farthest from those picked; the first is the most central."""
    points = np.array([features(a) for a in pool])
    nearest = np.linalg.norm(points - points.mean(axis=0), axis=1)
    picks = [int(nearest.argmin())]
    distance = np.full(len(pool), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, np.linalg.norm(points - points[picks[-1]], axis=1))
        picks.append(int(distance.argmax()))
    return [pool[i] for i in picks]


def by_digest(architecture: Architecture) -> str:
    """What tells two architectures apart."""
    return architecture.digest


def by_blocks(architecture: Architecture) -> str:
    """What tells two architectures apart, whatever the order of their blocks."""
    return repr(sorted((block.width, block.ffn_ratio, block.depth) for block in architecture.blocks))


def _pool(
    drawn: Iterable[Architecture],
    keep: Callable[[float], bool],
    taken: Collection[str],
    name: Callable[[Architecture], str],
) -> list[Architecture]:
    seen: dict[str, Architecture] = {}
    for architecture in drawn:
        if keep(count_flops(architecture)) and name(architecture) not in taken:
            seen.setdefault(name(architecture), architecture)
    return list(seen.values())


def choose(
    seed: int = 0,
    vocab_size: int = VOCAB_SIZE,
    counts: Mapping[str, int] = COUNTS,
    taken: Collection[str] = (),
    name: Callable[[Architecture], str] = by_digest,
) -> dict[str, list[Architecture]]:
    """Return the architectures of every group, none with a `name` in `taken`.

    Those whose width changes between blocks have the study's vocabulary.
    """
    space = load_space("poster", vocab_size)
    chosen: dict[str, list[Architecture]] = {}
    drawn = space.sample(30_000, seed)
    for group, level in (("equal", EQUAL_FLOPS), ("equal-large", LARGE_FLOPS)):
        near = lambda f, level=level: abs(f / level - 1) <= FLOPS_BAND * 0.99  # type: ignore[misc]  # noqa: E731
        chosen[group] = spread(_pool(drawn, near, taken, name), counts[group])
    taken = {*taken, *(name(a) for group in chosen.values() for a in group)}
    pool = _pool(space.sample(12_000, seed + 1), lambda f: FREE_FLOPS[0] <= f <= FREE_FLOPS[1], taken, name)
    chosen["free"] = spread(pool, counts["free"])
    chosen["steps"] = [
        Architecture(tuple(Block(w, r, d) for w, r, d in blocks), blocks[0][0], VOCAB_SIZE)
        for blocks in (
            ((256, 2, 2), (384, 2, 2), (512, 2, 2), (640, 2, 1)),
            ((640, 2, 1), (512, 2, 2), (384, 2, 2), (256, 2, 2)),
            ((256, 3, 2), (512, 3, 2), (512, 3, 2), (256, 3, 2)),
            ((512, 3, 2), (256, 3, 2), (256, 3, 2), (512, 3, 2)),
            ((384, 3, 3), (384, 3, 2), (448, 3, 2), (448, 3, 1)),
        )
    ]
    return chosen


def job(group: str, architecture: Architecture, tokens: float, *, seed: int = 0, **recipe: Any) -> dict[str, Any]:
    """One training, named by everything that defines it; `recipe` overrides the study's own."""
    identity = f"{architecture.digest}/{tokens:.0f}/{seed}/{json.dumps(recipe, sort_keys=True)}"
    return {
        "id": hashlib.sha256(identity.encode()).hexdigest()[:12],
        "group": group,
        "architecture": architecture.to_json(),
        "blocks": architecture.describe(),
        "tokens": int(tokens),
        "seed": seed,
        "override": recipe,
    }


def sweep_plan(tokens: float) -> list[dict[str, Any]]:
    """Initialisation and learning rates on corners of the space in width and depth."""
    jobs = []
    for width, ratio, depth in ((512, 2, 8), (768, 1, 4), (256, 3, 12), (256, 4, 4)):
        architecture = Architecture((Block(width, ratio, depth // 4),) * 4, width, VOCAB_SIZE)
        for init, table_lr, matrix_lr in (
            *(("zero-table", t, m) for t in (2e-3, 6e-3) for m in (0.5e-3, 1e-3, 2e-3)),
            ("zero", 6e-3, 1e-3),
        ):
            jobs.append(job("sweep", architecture, tokens, init=init, table_lr=table_lr, matrix_lr=matrix_lr))
    return jobs


def study_plan(low: float, main: float, high: float, *, subset: int = 18, seeds: int = 10) -> list[dict[str, Any]]:
    """The study, most needed first.

    All architectures at `main` tokens, a subset at `low` and `high`, second seeds, and on a few
    models half and twice the learning rate and the package's own initialisation.
    """
    chosen = choose()
    equal, free = chosen["equal"], chosen["free"]
    jobs = [job("equal", a, tokens) for tokens in (main, low, high) for a in equal[:subset]]
    jobs += [job(name, a, main) for name, group in chosen.items() for a in group if a not in equal[:subset]]
    jobs += [job("equal", a, main, seed=1) for a in equal[: seeds - 4]]
    jobs += [job("free", a, main, seed=1) for a in free[:4]]
    jobs += [job("lr", a, main, factor=f) for a in equal[1:5] for f in (0.5, 2.0)]
    jobs += [job("init", a, main, init="model") for a in equal[:10]]
    return jobs
