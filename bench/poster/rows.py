"""The rows of the poster's table, as trainings: what each model is, and what it costs.

A row is a plain dictionary, so that a plan is a file of JSON lines which a machine without this
project's search can train from. `shape` is the architecture whose FLOPs the row is counted by: for a
baseline the decoder of its widths, depth, FFN and vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from proxy.ordering import balanced_by

import merino_edge
from merino_edge.architecture import Architecture, Block
from merino_edge.errors import InfeasibleError
from merino_edge.files import read_json
from merino_edge.flows.conditions import DEFAULT_SPACE
from merino_edge.flows.verify import DEFAULT_SCORE
from merino_edge.search.cost import count_flops
from merino_edge.search.engine import SearchRequest, search
from merino_edge.search.scores import ScoreOptions, score_architecture
from merino_edge.search.space import load_space
from merino_edge.units import Limit

Row = dict[str, Any]

PRESET_FILES = Path(merino_edge.__file__).parent / "search" / "presets"

VOCAB_SIZE = 50_257
SMALL_VOCAB_SIZE = 8_192
PRESETS = ("merino-52m", "merino-61m", "merino-64m")
UNIFORM_DEPTHS = {"merino-52m": 3, "merino-61m": 6, "merino-64m": 9}  # of width 768, ratio 4: within 2 % of the FLOPs
CHOOSERS = ("parameters", "parameters-per-depth")
SMALL_FLOPS = (50.0e9, 51.8e9)  # of a plain decoder of six layers, width 512
SMALL_WITH_HEAD = (60.1e9, 62.0e9)  # of the plain ones of four to six layers, the product with the table included
BOARD_PLAIN = ((512, 6), (576, 5), (640, 4))
SMALL_PLAIN = ((768, 3), (576, 5), (512, 6), (384, 10))  # width and depth, within 4 % of those FLOPs; 640 x 4 is chosen
VOCABULARIES = {8_192: "all8192", 16_384: "all16384", 32_768: "all32768"}  # of all the text
FREE_WIDTHS, FREE_DEPTHS, FREE_RATIOS = range(256, 1025, 64), range(2, 11), (2, 4)  # of decoders without sharing
OWN_VOCABULARY = "all50257"  # as many tokens as GPT-2's, made from this text
BYTES_A_TOKEN = {8_192: 81.35 / 91.50, 16_384: 81.35 / 86.0, 32_768: 81.35 / 79.96}  # of this text, over GPT-2's
OWN_TOKENS = 78.13 / 81.35  # that spell this text, over GPT-2's
TOKENS = 80_000_000  # at most one epoch
LONG_TOKENS = 300_000_000  # of the same text, 3.7 epochs
SMALL_TOKENS = 8_000_000
SEEDS = (0, 1, 2)
ASKED = ("opt-350m", "pythia-162m")  # the one learned nothing; the other was asked the tasks when trained first
OTHER_RATES = {"vocabulary 32768 at merino-61m": 0.0012}  # the sweep chose 0.0024, which it did not bear for long
TE_NAS_CANDIDATES = 20
ASPECT, BALANCE = 128.0, 0.25  # width over executed layers that `balanced-parameters` looked for when it chose these
RATE_TIMES_WIDTH = 1.1  # the best learning rate of a plain decoder (`bench/space_study.py`)

NO_DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, "opt": {"dropout": 0.0}}


def plain(width: int, depth: int, vocab_size: int, embedding_width: int | None = None) -> Architecture:
    """Return a decoder without sharing: every layer its own, FFN of four times the width."""
    return Architecture(tuple(Block(width, 4, 1) for _ in range(depth)), embedding_width or width, vocab_size)


def rate_by_width(architecture: Architecture) -> float:
    """Return the peak learning rate that suits a decoder of one width, to two digits."""
    return float(f"{RATE_TIMES_WIDTH / architecture.blocks[0].width:.2g}")


def unshared(architecture: Architecture) -> Architecture:
    """Return the same layers, each with weights of its own."""
    blocks = tuple(Block(b.width, b.ffn_ratio, 1) for b in architecture.blocks for _ in range(b.depth))
    return Architecture(blocks, architecture.embedding_width, architecture.vocab_size, architecture.head_dim)


def _gpt2(layers: int, positions: int) -> Row:
    sizes = {"n_embd": 768, "n_layer": layers, "n_head": 12, "n_inner": 3072, "n_positions": positions}
    return {"model_type": "gpt2", "vocab_size": 50_257, **sizes, **NO_DROPOUT["gpt2"]}


def _opt(width: int, layers: int, heads: int, table: int, norm_first: bool) -> Row:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "ffn_dim": 4 * width}
    more = {"word_embed_proj_dim": table, "do_layer_norm_before": norm_first, "max_position_embeddings": 2048}
    return {"model_type": "opt", "vocab_size": 50_272, **sizes, **more, **NO_DROPOUT["opt"]}


def _pythia(width: int, layers: int, heads: int) -> Row:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "gpt_neox", "vocab_size": 50_304, "intermediate_size": 4 * width, **sizes}


BASELINES: dict[str, tuple[Row, Architecture]] = {
    "pythia-70m": (_pythia(512, 6, 8), plain(512, 6, 50_304)),
    "gpt2-124m": (_gpt2(12, 1024), plain(768, 12, 50_257)),
    "opt-125m": (_opt(768, 12, 12, 768, True), plain(768, 12, 50_272)),
    "pythia-162m": (_pythia(768, 12, 12), plain(768, 12, 50_304)),
    "cerebras-111m": (_gpt2(10, 2048), plain(768, 10, 50_257)),
    "opt-350m": (_opt(1024, 24, 16, 512, False), plain(1024, 24, 50_272, embedding_width=512)),
}


def choose(vocab_size: int, low: float, high: float, score: str) -> Architecture:
    """Return what a score chooses in the poster's space within a range of FLOPs."""
    limits = {"flops": Limit(high, low)}
    return search(
        SearchRequest(load_space("poster", vocab_size), score=ScoreOptions(name=score), limits=limits)
    ).winner.architecture


def within(vocab_size: int, low: float, high: float, head: bool) -> Iterator[Architecture]:
    """Yield the poster's space, one of each class of block orders, within a range of FLOPs."""
    for width in range(256, 769, 64):
        options = [(depth, ratio) for depth in (1, 2, 3) for ratio in (1, 2, 3, 4)]
        for blocks in combinations_with_replacement(options, 4):
            found = Architecture(tuple(Block(width, ratio, depth) for depth, ratio in blocks), width, vocab_size)
            if low <= count_flops(found, head=head) <= high:
                yield found


def choose_with_head(vocab_size: int, low: float, high: float, score: str) -> Architecture:
    """Return what a score chooses where the product with the vocabulary table counts too."""
    found = list(within(vocab_size, low, high, head=True))
    return max(found, key=lambda a: (score_architecture(a, ScoreOptions(name=score)), -a.unique_parameters))


def choose_free(
    vocab_size: int, flops_with_head: float, score: str, embedding_width: int | None = None
) -> Architecture:
    """Return what a score chooses among decoders without sharing, the head's FLOPs counted.

    The default score chooses as it did when these rows were trained, so that the plan stays theirs.
    """
    found = [
        Architecture(tuple(Block(width, ratio, 1) for ratio in ratios), embedding_width or width, vocab_size)
        for width in FREE_WIDTHS
        for depth in FREE_DEPTHS
        for ratios in combinations_with_replacement(FREE_RATIOS, depth)
    ]
    least, most = 0.96 * flops_with_head, 1.003 * flops_with_head
    found = [a for a in found if least <= count_flops(a, head=True) <= most]
    with balanced_by(ASPECT, BALANCE, 0.0, executed=True):
        return max(found, key=lambda a: (score_architecture(a, ScoreOptions(name=score)), -a.unique_parameters))


def free_rows(others: list[Row]) -> list[Row]:
    """Return what scores choose where depth is free and nothing shared, the head counted; then tables that cost less.

    A smaller vocabulary has more tokens for the same text: its FLOPs are equal for a byte, not for a token.
    What is among the other rows already only adds its name to them.
    """
    budgets = {n: count_flops(plain(768, UNIFORM_DEPTHS[n], VOCAB_SIZE), head=True) for n in PRESETS}
    ours = [row for row in others if "architecture" in row["model"]]
    rows = {Architecture.from_json(row["shape"]).digest: row for row in ours}
    for name, budget in budgets.items():
        for score in ("balanced-parameters", "parameters-per-depth", "decoder-parameters"):
            chosen = choose_free(VOCAB_SIZE, budget, score)
            row = _row(f"free {score} at {name}", "free", chosen)
            if chosen.digest in rows:
                row, added = rows[chosen.digest], row["id"]
                row["also"] = [*row.get("also", []), added]
            rows[chosen.digest] = row
    budget = budgets["merino-61m"]
    narrow = choose_free(VOCAB_SIZE, budget, "balanced-parameters", embedding_width=512)
    rows[narrow.digest] = _row("embedding 512 at merino-61m", "free", narrow)
    for size, data in VOCABULARIES.items():
        for name in PRESETS:
            chosen = choose_free(size, budgets[name] * BYTES_A_TOKEN[size], "balanced-parameters")
            tokens = round(TOKENS / BYTES_A_TOKEN[size])
            rows[chosen.digest] = _row(f"vocabulary {size} at {name}", "vocabulary", chosen, data=data, tokens=tokens)
    return [row for row in rows.values() if row["group"] in ("free", "vocabulary")]


def control_rows() -> list[Row]:
    """Return rows of as many tokens as GPT-2's, made from the text: what it is worth that they are made from it.

    Each is the very architecture that has GPT-2's tokens in another row, trained on as much text at the same rate.
    """
    rows = []
    for name, depth in UNIFORM_DEPTHS.items():
        chosen = choose_free(VOCAB_SIZE, count_flops(plain(768, depth, VOCAB_SIZE), head=True), "balanced-parameters")
        more = {"data": OWN_VOCABULARY, "tokens": round(TOKENS * OWN_TOKENS), "learning_rate": 0.0012}
        rows.append(_row(f"vocabulary 50257 at {name}", "control", chosen, **more))
    return rows


def choose_te_nas(vocab_size: int, low: float, high: float) -> Architecture:
    """Return what TE-NAS's two scores choose, ranks added, among random architectures of a range of FLOPs."""
    import random

    from merino_edge.training.scores import network_score

    found = sorted(within(vocab_size, low, high, head=False), key=lambda a: a.digest)
    found = random.Random(0).sample(found, min(TE_NAS_CANDIDATES, len(found)))  # noqa: S311  no secret
    ranks = [0] * len(found)
    for half in ("ntk-condition", "linear-regions"):
        values = [network_score(half, a) for a in found]
        for place, index in enumerate(sorted(range(len(found)), key=values.__getitem__)):
            ranks[index] += place
    return found[max(range(len(found)), key=ranks.__getitem__)]


def _row(name: str, group: str, shape: Architecture, model: Row | None = None, **more: Any) -> Row:
    row = {
        "id": name,
        "group": group,
        "model": {"transformers": model} if model else {"architecture": shape.to_json()},
        "shape": shape.to_json(),
        "describe": shape.describe(),
        "flops": count_flops(shape),
        "flops_with_head": count_flops(shape, head=True),
        "unique_parameters": shape.unique_parameters,
        "executed_parameters": unshared(shape).unique_parameters,
        "data": "gpt2",
        "tokens": TOKENS,
        "seeds": [0],
    }
    return {**row, **more}


def poster_rows() -> list[Row]:
    """Return the rows of the table, those that matter most first."""
    files = {name: read_json(PRESET_FILES / f"{name}.json") for name in PRESETS}
    found = {name: Architecture.from_json(file["architecture"]) for name, file in files.items()}
    rows = [_row(name, "preset", a) for name, a in found.items()]
    rows += [_row(name, "uniform", a) for name, a in uniforms_of_presets().items()]
    rows += [_row(f"unshared {name}", "twin", unshared(a)) for name, a in found.items()]
    seen: dict[str, Row] = {}
    for name in PRESETS:
        flops = count_flops(plain(768, UNIFORM_DEPTHS[name], VOCAB_SIZE))
        for score in CHOOSERS:
            chosen = choose(VOCAB_SIZE, 0.97 * flops, 1.005 * flops, score)
            row = _row(f"{score} at {name}", "choice", chosen)
            if chosen.digest in seen:
                seen[chosen.digest]["also"] = [*seen[chosen.digest].get("also", []), row["id"]]
            else:
                seen[chosen.digest] = row
    rows += list(seen.values())
    flops = count_flops(plain(768, UNIFORM_DEPTHS["merino-52m"], VOCAB_SIZE))
    chosen = choose_te_nas(VOCAB_SIZE, 0.97 * flops, 1.005 * flops)
    rows.append(_row("te-nas at merino-52m", "choice", chosen))
    order = ("pythia-70m", "gpt2-124m", "opt-125m", "pythia-162m", "cerebras-111m", "opt-350m")
    return rows + [_row(name, "baseline", BASELINES[name][1], BASELINES[name][0]) for name in order]


def further_rows(rows: list[Row], recorded: list[Row]) -> list[Row]:
    """Return trainings of rows that were trained once: more tokens, and other seeds for the noise of one training.

    The learning rate and the sweep that chose it are those recorded.
    """
    known = {row["id"]: {key: row[key] for key in ("learning_rate", "sweep")} for row in recorded}
    plan = {row["id"]: row for row in rows}
    long = [f"{kind}{name}" for kind in ("", "unshared ", "uniform of ") for name in PRESETS]
    found = [{**plan[n], "id": f"{n}, 300 M tokens", "row": n, "tokens": LONG_TOKENS} for n in long]
    again = [
        "free balanced-parameters at merino-52m",
        *PRESETS,
        *(f"uniform of {name}" for name in PRESETS),
        *BASELINES,
    ]
    found += [{**plan[n], "id": f"{n}, seed 1", "row": n, "seeds": [1]} for n in again if n not in ASKED]
    found = [{**row, **known.get(row["row"], {})} for row in found]
    for name, rate in OTHER_RATES.items():
        tries = [t for t in known.get(name, {}).get("sweep", []) if t["learning_rate"] == rate]
        found.append({**plan[name], "id": f"{name}, learning rate {rate:g}", **({"sweep": tries} if tries else {})})
    return found


def board_rows() -> list[Row]:
    """Return decoders for boards, what scores choose and plain ones: equal FLOPs with the head, three seeds each."""
    size, kind = 8_192, VOCABULARIES[8_192]
    scores = ("balanced-parameters", "parameters", "parameters-per-depth", "decoder-parameters")
    models = {score: choose_free(size, SMALL_WITH_HEAD[1], score) for score in scores}
    models |= {f"plain {width}x{depth}": plain(width, depth, size) for width, depth in BOARD_PLAIN}
    rows: dict[str, Row] = {}
    for name, architecture in models.items():
        if architecture.digest in rows:
            rows[architecture.digest]["also"].append(f"board {name}")
        else:
            more = {"also": [], "data": kind, "seeds": list(SEEDS)}
            rows[architecture.digest] = _row(f"board {name}", "board", architecture, **more)
    return list(rows.values())


def default_rows() -> list[Row]:
    """Return what the default search chooses now, and plain decoders at learning rates that are as fit for them.

    The search is `merino-edge search` with its defaults, limited to the FLOPs of a plain decoder, the head counted.
    """
    rows: dict[str, Row] = {}

    def add(name: str, found: Architecture, more: Row, long: bool = False) -> None:
        rows[name] = _row(name, more.pop("group"), found, learning_rate=rate_by_width(found), **more)
        if long:
            rows[f"{name}, 300 M tokens"] = {
                **rows[name], "id": f"{name}, 300 M tokens", "row": name, "tokens": LONG_TOKENS, "seeds": [0]
            }  # fmt: skip

    board: Row = {"data": VOCABULARIES[8_192], "seeds": list(SEEDS)}
    found = choose_by_default(8_192, SMALL_WITH_HEAD[1])
    add("board default", found, {"group": "board", **board}, long=True)
    add("board default without the skip", replace(found, embedding_skip=False), {"group": "board", **board})
    for width, depth in BOARD_PLAIN:
        name = f"board plain {width}x{depth} at {RATE_TIMES_WIDTH} / width"
        add(name, plain(width, depth, 8_192), {"group": "board", **board}, long=(width, depth) == BOARD_PLAIN[0])
    for name, found in defaults_at_presets().items():
        add(name, found, {"group": "default"}, long=True)
        rows[f"{name}, seed 1"] = {**rows[name], "id": f"{name}, seed 1", "row": name, "seeds": [1]}
        bare = replace(found, embedding_skip=False)
        add(f"{name} without the skip", bare, {"group": "default"}, long=name.endswith(PRESETS[0]))
        rows[f"{name}, swept"] = _row(f"{name}, swept", "default", found)  # at the rate of the other rows' sweep
    for name, found in uniforms_of_presets().items():
        add(f"{name} at {RATE_TIMES_WIDTH} / width", found, {"group": "default"})
    return list(rows.values())


def uniforms_of_presets() -> dict[str, Architecture]:
    """Return the plain decoder of each preset's FLOPs by the name of its row."""
    return {f"uniform of {name}": plain(768, depth, VOCAB_SIZE) for name, depth in UNIFORM_DEPTHS.items()}


def defaults_at_presets() -> dict[str, Architecture]:
    """Return what the default search chooses at the FLOPs of those, the head counted, by the name of its row."""
    budgets = {name: count_flops(plain(768, depth, VOCAB_SIZE), head=True) for name, depth in UNIFORM_DEPTHS.items()}
    return {f"default at {name}": choose_by_default(VOCAB_SIZE, budget) for name, budget in budgets.items()}


def choose_by_default(vocab_size: int, flops_with_head: float) -> Architecture:
    """Return what `merino-edge search` chooses within FLOPs that count the head."""
    space, score = load_space(DEFAULT_SPACE, vocab_size).with_embedding_skip(), ScoreOptions(DEFAULT_SCORE)
    found = []
    for width in space.widths or ():
        head = 2 * 1024 * width * vocab_size  # a search's limit does not count it
        limit = Limit(1.003 * flops_with_head - head)
        with suppress(InfeasibleError):
            request = SearchRequest(replace(space, widths=(width,)), score=score, limits={"flops": limit})
            found.append(search(request).winner)
    return max(found, key=lambda one: one.score).architecture


def small_rows() -> list[Row]:
    """Return the models of the seed study: equal FLOPs, a vocabulary for boards, three seeds each."""
    size = SMALL_VOCAB_SIZE
    models = {score: choose(size, *SMALL_FLOPS, score) for score in (*CHOOSERS, "entropy", "entropy-poster")}
    models |= {f"{score}, head counted": choose_with_head(size, *SMALL_WITH_HEAD, score) for score in CHOOSERS}
    models["te-nas"] = choose_te_nas(size, *SMALL_FLOPS)
    models |= {f"plain {width}x{depth}": plain(width, depth, size) for width, depth in SMALL_PLAIN}
    shared = models["entropy-poster"]
    models["entropy-poster, norms of its own for each layer"] = replace(shared, per_layer_norms=True)
    models["entropy-poster, unshared"] = unshared(shared)
    more = {"data": "bpe8192", "tokens": SMALL_TOKENS, "seeds": list(SEEDS)}
    rows, seen = [], set()
    for name, architecture in models.items():
        if architecture.digest not in seen:
            seen.add(architecture.digest)
            same = [f"small {n}" for n, a in models.items() if n != name and a.digest == architecture.digest]
            rows.append(_row(f"small {name}", "small", architecture, also=same, **more))
    return rows
