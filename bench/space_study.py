"""What a space could leave open besides shapes: parts that cost next to no FLOPs, tried at a board's size.

    bench/space_study.py --train .poster --out space.jsonl --gpus 0,1    on a machine with GPUs
    bench/space_study.py --collect space.jsonl --device "NVIDIA H100"    into bench/results/space_study.json
    bench/space_study.py --stats                             what follows from the recorded trainings, again

The folder is that of `bench/poster_train.py`, with `all8192/`, for the two rows of GPT-2's vocabulary `gpt2/` too.
Recipe, text and 80 M tokens are those of its rows named `board`. A job is a shape and what is changed:

    embedding-skip   the normed embedding is added to what enters each layer, by channel: `Architecture.embedding_skip`
    value-first      the first layer's values are mixed into every layer's, by channel (Zhou et al. 2024)
    entry-table      a table for each block but the first; the token's row is added to what enters it
    value-table      a table for each executed layer, also of a shared block; the token's row is added to its values
    value-table=R    the same of R columns, brought to the layer's width by a matrix
    untied=S         an output head of its own beside the token table, which begins as N(0, S^2)
    gated            FFN of three matrices (Shazeer 2020), two thirds as wide
    relu2            squared ReLU instead of GELU (So et al. 2021)
    qk-norm          queries and keys are normed by head
    head-dim=D       heads of another width

Plain decoders of several widths over depths, all with the embedding skip, at several learning rates say which shape to
look for: the default score's two numbers are fitted to them, each at its best rate, and are recorded under `fit`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

RESULTS = Path(__file__).resolve().parent / "results"
VOCAB_SIZE = 8_192
TOKENS = 80_000_000
RATE = 0.0012  # what the sweeps of the rows named `board` chose
ASPECTS = {  # plain decoders, width x layers, by GFLOPs with the head
    "27 to 33": ("256x10", "320x7", "384x5", "384x4", "448x3"),
    "60 to 64": ("384x11", "448x8", "512x6", "576x5", "640x4"),
    "118 to 126": ("512x13", "576x11", "640x9", "704x7", "768x6"),
}
ASPECTS_GPT2 = {"gpt2 130 to 133": ("gpt2 512x9", "gpt2 576x7"), "gpt2 185 to 197": ("gpt2 576x13", "gpt2 768x6")}
TRIED_ASPECTS = (24.0, 32.0, 40.0, 44.0, 48.0, 56.0, 64.0, 80.0, 96.0, 128.0, 160.0)  # of the default score
TRIED_BALANCES = (0.05, 0.125, 0.2, 0.25, 0.3, 0.4, 0.5)
BESIDE = {"gpt2 130 to 133": ("768x3",)}  # of a group, but without the skip alone
Shape = tuple[tuple[int, float, int], ...]  # width, FFN ratio, depth of each block


def _sides(name: str) -> tuple[int, int]:
    """Return width and number of layers of `gpt2 512x9`."""
    width, _, layers = name.split()[-1].partition("x")
    return int(width), int(layers)


def _plain(groups: dict[str, tuple[str, ...]]) -> dict[str, Shape]:
    sides = {name: _sides(name) for names in groups.values() for name in names}
    return {name: ((width, 4, 1),) * layers for name, (width, layers) in sides.items()}


SHAPES: dict[str, Shape] = {
    "576x5": ((576, 4, 1),) * 5,
    "640x4": ((640, 4, 1),) * 4,
    "512x6": ((512, 4, 1),) * 6,
    "shared": ((576, 4, 1), (576, 4, 1), (576, 4, 3)),
    "576x5 gated": ((576, 8 / 3, 1),) * 5,
    "576x4 r5.5": ((576, 5.5, 1),) * 4,
    "512x5 r5.2": ((512, 5.2, 1),) * 5,
    "640x3 r6": ((640, 6, 1),) * 3,
    "576 rising": ((576, 2, 1), (576, 4, 1), (576, 4, 1), (576, 4, 1), (576, 6, 1)),
    "576 middle": ((576, 2, 1), (576, 5, 1), (576, 5, 1), (576, 5, 1), (576, 3, 1)),
    **_plain(ASPECTS),
}
LARGE: dict[str, Shape] = {
    "merino-52m": ((768, 1, 1), (768, 1, 1), (768, 1, 1), (768, 1, 2)),
    "768x3": ((768, 4, 1),) * 3,
    **_plain(ASPECTS_GPT2),
}
JOBS = """
576x5; 576x5: rate=0.0024; 576x5: seed=1 rate=0.0024; 640x4: rate=0.0024; 512x6: rate=0.0024;
576x5: embedding-skip; 576x5: embedding-skip seed=1; 576x5: embedding-skip seed=2;
576x5: embedding-skip rate=0.0024; 576x5: embedding-skip seed=1 rate=0.0024;
640x4: embedding-skip; 640x4: embedding-skip seed=1; 640x4: embedding-skip seed=2;
640x4: embedding-skip rate=0.0024; 640x4: embedding-skip seed=1 rate=0.0024;
512x6: embedding-skip; 512x6: embedding-skip rate=0.0024;
shared; shared: rate=0.0024; shared: embedding-skip; shared: embedding-skip rate=0.0024;
merino-52m: embedding-skip; 768x3: embedding-skip;
576x5: entry-table; 576x5: entry-table seed=1; 576x5: entry-table rate=0.0024; 576x5: embedding-skip entry-table;
576x5: embedding-skip entry-table rate=0.0024; 640x4: entry-table; shared: embedding-skip entry-table;
576x5: value-table; 576x5: value-table rate=0.0024; 576x5: value-table=64; shared: value-table;
576x5: value-first; 576x5: embedding-skip value-first; 576x5: untied=1; 576x5: untied=0.0417;
576x5 gated: gated; 576x5: relu2; 576x5: qk-norm; 576x5: head-dim=96;
576x4 r5.5; 512x5 r5.2; 640x3 r6; 576 rising; 576 middle;
512x6: embedding-skip rate=0.0021; 512x6: embedding-skip rate=0.0036; 512x6: embedding-skip rate=0.0048;
576x5: embedding-skip rate=0.0019; 576x5: embedding-skip rate=0.0036;
640x4: embedding-skip rate=0.0017; 640x4: embedding-skip rate=0.0036;
448x8: embedding-skip rate=0.0024; 448x8: embedding-skip rate=0.0036; 384x11: embedding-skip rate=0.0028;
512x6: rate=0.0036; 576x5: rate=0.0036; 640x4: rate=0.0036; 448x8: rate=0.0024;
384x4: embedding-skip rate=0.0024; 448x3: embedding-skip rate=0.0024; 384x5: embedding-skip rate=0.0024;
384x5: embedding-skip rate=0.0028; 320x7: embedding-skip rate=0.0024; 320x7: embedding-skip rate=0.0034;
256x10: embedding-skip rate=0.0042;
768x6: embedding-skip rate=0.0014; 768x6: embedding-skip rate=0.0024; 704x7: embedding-skip rate=0.0015;
704x7: embedding-skip rate=0.0024; 640x9: embedding-skip rate=0.0017; 640x9: embedding-skip rate=0.0024;
576x11: embedding-skip rate=0.0019; 576x11: embedding-skip rate=0.0024; 512x13: embedding-skip rate=0.0021;
gpt2 512x9: embedding-skip rate=0.0021; gpt2 576x7: embedding-skip rate=0.0019;
gpt2 768x6: rate=0.0014; gpt2 768x6: embedding-skip rate=0.0014; gpt2 576x13: embedding-skip rate=0.0019
"""


def architecture(name: str, head_dim: int = 64) -> Any:
    """Return the decoder of a name, without what a job changes; those in `LARGE` have GPT-2's vocabulary."""
    from merino_edge.architecture import Architecture, Block

    shape = {**SHAPES, **LARGE}[name]
    vocab_size = 50_257 if name in LARGE else VOCAB_SIZE
    return Architecture(tuple(Block(*block) for block in shape), shape[0][0], vocab_size, head_dim)


def make(row: dict[str, Any]) -> Any:
    """Make the model of a row with the parts that it names."""
    import torch
    import torch.nn.functional as F
    from poster.trainer import CONTEXT
    from torch import Tensor, nn

    from merino_edge.architecture import NORM_EPSILON
    from merino_edge.training.model import MerinoConfig, MerinoForCausalLM, head_loss, rotate, rotation

    parts: dict[str, Any] = row["parts"]

    def norm(x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, NORM_EPSILON)

    def act(h: Tensor) -> Tensor:
        return F.relu(h).square() if "relu2" in parts else F.gelu(h)

    def layer(block: Any, x: Tensor, gains: Tensor, by: Any, own: Any, skip: Any, row_of: Any, first: Any) -> Any:
        """One layer; `own` are its vectors by channel, `row_of` what the token adds to its values."""
        if skip is not None:
            x = x + own["skip"] * skip
        h = F.rms_norm(x, gains[0].shape, gains[0], NORM_EPSILON)
        v = block.value(h)
        if row_of is not None:
            v = v + row_of
        if first is not None:
            v = own["mine"] * v + own["first"] * first
        q, k, vs = (t.unflatten(-1, (block.heads, -1)).transpose(1, 2) for t in (block.query(h), block.key(h), v))
        if "qk-norm" in parts:
            q, k = norm(q), norm(k)
        q, k = rotate(q, by), rotate(k, by)
        mixed = F.scaled_dot_product_attention(q, k, vs, is_causal=True)
        x = x + block.output(mixed.transpose(1, 2).flatten(2))
        n = F.rms_norm(x, gains[1].shape, gains[1], NORM_EPSILON)
        h = block.ffn_in(n)
        return x + block.ffn_out(F.silu(block.gate(n)) * h if "gated" in parts else act(h)), v

    class Tried(MerinoForCausalLM):  # type: ignore[misc]
        """A decoder with further parts."""

        def __init__(self, config: MerinoConfig) -> None:
            super().__init__(config)
            a = config.merino
            widths = [block.width for block in a.blocks for _ in range(block.depth)]
            if "untied" in parts:
                self.head = nn.Parameter(torch.randn(a.vocab_size, a.embedding_width) * a.embedding_width**-0.5)
                nn.init.normal_(self.embedding.weight, std=float(parts["untied"]))
            if "gated" in parts:
                for block in self.blocks:
                    block.gate = nn.Linear(block.ffn_in.in_features, block.ffn_in.out_features, bias=False)
                    nn.init.normal_(block.gate.weight, std=block.ffn_in.in_features**-0.5)
            rank = parts.get("value-table")
            if rank is not None:
                self.tables = nn.ModuleList(nn.Embedding(a.vocab_size, rank or width) for width in widths)
                ups = [nn.Linear(rank, width, bias=False) if rank else nn.Identity() for width in widths]
                self.ups = nn.ModuleList(ups)
                for table in self.tables:
                    nn.init.normal_(table.weight, std=0.02) if rank else nn.init.zeros_(table.weight)
                for up in self.ups:
                    if rank:
                        nn.init.zeros_(up.weight)
            if "entry-table" in parts:
                self.entries = nn.ModuleList(nn.Embedding(a.vocab_size, block.width) for block in a.blocks[1:])
                for table in self.entries:
                    nn.init.zeros_(table.weight)
            vectors = {}
            for i, width in enumerate(widths):
                if "embedding-skip" in parts:
                    vectors[f"{i}skip"] = nn.Parameter(torch.zeros(width))
                if "value-first" in parts and i:
                    vectors[f"{i}mine"] = nn.Parameter(torch.ones(width))
                    vectors[f"{i}first"] = nn.Parameter(torch.zeros(width))
            self.vectors = nn.ParameterDict(vectors)
            self.run: Any = layer

        def compile_parts(self) -> None:
            self.run = torch.compile(layer, dynamic=False)
            self.head_loss = torch.compile(head_loss, dynamic=False)

        def plain_parts(self) -> None:
            self.run, self.head_loss = layer, head_loss

        def forward(self, input_ids: Tensor, labels: Any = None, loss_only: bool = False, **_: Any) -> Any:
            from transformers.modeling_outputs import CausalLMOutputWithPast

            x = self.embedding(input_ids)
            positions = torch.arange(input_ids.shape[1], device=x.device)[None]
            by = rotation(positions, self.head_dim, x.dtype)
            skip = norm(x) if "embedding-skip" in parts else None
            first, i = None, 0
            for number, block in enumerate(self.blocks):
                if number and "entry-table" in parts:
                    x = x + self.entries[number - 1](input_ids)
                for _ in range(block.depth):
                    names = [n for n in ("skip", "mine", "first") if f"{i}{n}" in self.vectors]
                    own = {name: self.vectors[f"{i}{name}"] for name in names}
                    row_of = self.ups[i](self.tables[i](input_ids)) if "value-table" in parts else None
                    x, v = self.run(block, x, block.norms[0], by, own, skip, row_of, first)
                    if "value-first" in parts and first is None:
                        first = v
                    i += 1
            x = self.final_norm(x)
            table = self.head if "untied" in parts else self.embedding.weight
            if loss_only:
                return CausalLMOutputWithPast(loss=self.head_loss(x, table, labels))
            return CausalLMOutputWithPast(logits=F.linear(x, table))

    config = MerinoConfig(architecture=row["model"]["architecture"], max_position_embeddings=CONTEXT)
    return Tried(config)


def read_jobs(text: str) -> list[dict[str, Any]]:
    """Read jobs between semicolons, however they are broken into lines."""
    return [read_job(" ".join(one.split())) for one in text.split(";")]


def read_job(text: str) -> dict[str, Any]:
    """Read `576x5: untied=1 seed=1`."""
    shape, _, words = text.partition(":")
    found: dict[str, Any] = {"id": text, "shape": shape, "parts": {}, "seed": 0, "rate": RATE, "tokens": TOKENS}
    for word in words.split():
        key, _, value = word.partition("=")
        if key == "seed":
            found[key] = int(value)
        elif key == "rate":
            found[key] = float(value)
        else:
            found["parts"][key] = float(value) if key == "untied" else int(value or 0)
    return found


def run_job(job: dict[str, Any], options: argparse.Namespace, gpu: int) -> None:
    """Train and judge one model."""
    from poster.trainer import CONTEXT, RowTrainer
    from poster_train import append, deadline, gpu_turn, load_texts, ready_trainer

    class Trainer(RowTrainer):
        def make(self) -> Any:
            return make(self.row)

    model = {"architecture": architecture(job["shape"], job["parts"].get("head-dim", 64)).to_json()}
    texts = load_texts(options.train, "gpt2" if job["shape"] in LARGE else "all8192")
    trainer, _ = ready_trainer({"model": model, "parts": job["parts"]}, texts, Trainer)
    with gpu_turn(options.train / f"turn-{gpu}"):
        if time.time() + options.reserve > deadline(options):
            return
        found = trainer.train(job["tokens"], job["rate"], job["seed"])
        loss = trainer.score(trainer.texts.validation, CONTEXT).loss
    kept = ("steps", "tokens", "seconds", "learning_rate", "train_loss", "curve")
    facts = {"parameters": sum(p.numel() for p in trainer.model.parameters())}
    append(options.out, {**job, **facts, **{k: found[k] for k in kept}, "validation_loss": loss})
    print(f"{job['id']}: {loss:.4f} in {found['seconds']:.0f} s, gpu {gpu}", flush=True)


def train(options: argparse.Namespace) -> None:
    """Train what is not done, several models in flight."""
    from poster_train import finished, in_flight

    options.until = time.time() + options.seconds
    done = finished(options.out)
    jobs = [job for job in read_jobs(options.jobs) if job["id"] not in done]
    gpus = [int(gpu) for gpu in options.gpus.split(",")]
    in_flight(options, jobs, run_job, [(gpu,) for _ in range(options.workers) for gpu in gpus])


def collect(paths: list[Path], device: str) -> None:
    """Write what was brought back."""
    from record import write_result

    from merino_edge.search.cost import count_flops

    flops = {name: count_flops(architecture(name), head=True) for name in (*SHAPES, *LARGE)}
    width, ffn, _ = SHAPES["576x5 gated"][0]
    flops["576x5 gated"] += 2 * 1024 * 5 * width * int(width * ffn)  # the third matrix
    rows: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "failed" in row:  # then it is missing, or was trained again
                continue
            rows.setdefault(row["id"], {**row, "flops_with_head": flops[row["shape"]]})
    jobs = [job["id"] for job in read_jobs(JOBS)]
    found = [rows[name] for name in jobs if name in rows]
    missing = [name for name in jobs if name not in rows]
    result = {"device": device, "rows": found, "missing": missing}
    print(write_result("space_study", {**result, "fit": fit(result)}))


def best_rates(result: dict[str, Any]) -> dict[str, dict[str, tuple[float, float]]]:
    """Return by group of FLOPs the plain decoders with the skip: least loss (first seed) and its learning rate."""
    rows = [r for r in result["rows"] if list(r["parts"]) == ["embedding-skip"] and r["seed"] == 0]
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for flops, names in {**ASPECTS, **ASPECTS_GPT2}.items():
        for name in names:
            tries = [(row["validation_loss"], row["rate"]) for row in rows if row["shape"] == name]
            if tries:
                found.setdefault(flops, {})[name] = min(tries)
    return found


def fit(result: dict[str, Any]) -> dict[str, Any]:
    """Return how well each aspect and weight of the default score tells these decoders, and each other score.

    `error` is the root mean square in nats of a loss linear in the log of the score, with a constant for each group of
    FLOPs; `spearman` the mean over the groups with the small vocabulary. `left_out` is the order of a group by the
    pair with the least error on the others.
    """
    import numpy as np
    from proxy.ordering import balanced_by, spearman
    from shape_study import SCORES

    from merino_edge.search.regime import STUDY_BETA
    from merino_edge.search.scores import ScoreOptions, score_architecture

    groups = best_rates(result)
    losses = {name: loss for shapes in groups.values() for name, (loss, _) in shapes.items()}
    models = {name: architecture(name) for name in losses}

    def values(score: str, group: str) -> Any:
        options = ScoreOptions(score, beta=STUDY_BETA) if score == "entropy" else ScoreOptions(score)
        return np.array([score_architecture(models[name], options) for name in groups[group]])

    def order(score: str, group: str) -> float:
        return spearman(values(score, group), -np.array([losses[name] for name in groups[group]]))

    def error(names: list[str]) -> float:
        logs = [np.log(values("balanced-parameters", group)) for group in names]
        seen = [np.array([losses[name] for name in groups[group]]) for group in names]
        x, y = (np.concatenate([part - part.mean() for part in parts]) for parts in (logs, seen))
        return float(np.sqrt(np.mean((y - x * (x @ y) / (x @ x)) ** 2)))

    tried, left_out = [], {}
    for aspect, balance in product(TRIED_ASPECTS, TRIED_BALANCES):
        with balanced_by(aspect, balance):
            one = {"aspect": aspect, "balance": balance, "error": error(list(groups))}
            mean_order = mean(order("balanced-parameters", group) for group in ASPECTS)
            without = {group: error([other for other in groups if other != group]) for group in ASPECTS}
        tried.append({**one, "spearman": mean_order, "error_without": without})
    for group in ASPECTS:
        best = min(tried, key=lambda one: one["error_without"][group])
        found = {"aspect": best["aspect"], "balance": best["balance"]}
        with balanced_by(**found):
            left_out[group] = {**found, "spearman": order("balanced-parameters", group)}
    others = {score: {group: order(score, group) for group in ASPECTS} for score in SCORES}
    return {"tried": tried, "left_out": left_out, "spearman": others, "best_rates": groups}


def aspect_table(result: dict[str, Any]) -> str:
    """Return decoders by width over depth in Markdown, with the loss at each learning rate."""
    groups = grouped(result)
    lines = [
        "| GFLOPs with head | decoder | width over depth | parameters, M "
        "| loss by learning rate, with the embedding skip | without |",
        "| ---: | --- | ---: | ---: | --- | --- |",
    ]

    def told(name: str, parts: str) -> tuple[str, list[dict[str, Any]]]:
        tries = sorted((rate, rows) for (shape, p, rate), rows in groups.items() if (shape, p) == (name, parts))
        return "; ".join(f"{rate:g}: {told_loss(rows)}" for rate, rows in tries), [r for _, rows in tries for r in rows]

    for name in (name for names in {**ASPECTS, **ASPECTS_GPT2}.values() for name in names):
        losses, rows = told(name, "embedding-skip")
        width, layers = _sides(name)
        sizes = f"{width / layers:.0f} | {rows[0]['parameters'] / 1e6:.1f}"
        lines.append(f"| {rows[0]['flops_with_head'] / 1e9:.1f} | {name} | {sizes} | {losses} | {told(name, '')[0]} |")
    return "\n".join(lines)


def _key(row: dict[str, Any]) -> tuple[str, str, float]:
    parts = " ".join(f"{key}={value:g}" if value else key for key, value in row["parts"].items())
    return row["shape"], parts, row["rate"]


def grouped(result: dict[str, Any]) -> dict[tuple[str, str, float], list[dict[str, Any]]]:
    """Return trainings that differ in their seed alone together; plain ones of the recorded board rows too."""
    found: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault(_key(row), []).append(row)
    recorded = json.loads((RESULTS / "poster_train.json").read_text(encoding="utf-8"))["result"]["rows"]
    names = {"board plain 512x6": "512x6", "board plain 576x5": "576x5", "board balanced-parameters": "640x4"}
    names |= {"merino-52m": "merino-52m", "uniform of merino-52m": "768x3"}
    for row in recorded:
        if row["id"] in names and row["tokens"] <= TOKENS:
            shape, loss = names[row["id"]], row["judged"]["validation"]["loss"]
            if row["seed"] in [other["seed"] for other in found.get((shape, "", row["learning_rate"]), [])]:
                continue  # trained here too
            kept = {"parameters": row["parameters"], "flops_with_head": row["flops_with_head"], "seed": row["seed"]}
            found.setdefault((shape, "", row["learning_rate"]), []).append({**kept, "validation_loss": loss})
    return found


def told_loss(rows: list[dict[str, Any]]) -> str:
    """Return the mean over seeds, with the deviation of three."""
    losses = [row["validation_loss"] for row in rows]
    if len(losses) == 2:
        return f"{losses[0]:.3f}, {losses[1]:.3f}"
    return f"{mean(losses):.3f}" + (f" ± {stdev(losses):.3f}" if len(losses) > 2 else "")


def page_table(result: dict[str, Any]) -> str:
    """Return all trainings in Markdown: each shape by what was changed."""
    groups = grouped(result)
    lines = [
        "| decoder | changed | parameters, M | GFLOPs with head | loss at 0.0012 | at 0.0024 |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    order = [*SHAPES, *LARGE]
    shown = {(shape, parts) for shape, parts, rate in groups if rate == RATE}
    named = {shape for shape, _ in shown}
    shown |= {(shape, parts) for shape, parts, rate in groups if rate == 2 * RATE and shape in named}
    for shape, parts in sorted(shown, key=lambda k: (order.index(k[0]), k[1])):
        rates = [groups.get((shape, parts, rate), []) for rate in (RATE, 2 * RATE)]
        one = next(rows[0] for rows in rates if rows)
        sizes = f"{one['parameters'] / 1e6:.1f} | {one['flops_with_head'] / 1e9:.1f}"
        losses = " | ".join(told_loss(rows) if rows else "" for rows in rates)
        lines.append(f"| {shape} | {parts} | {sizes} | {losses} |")
    return "\n".join(lines)


def figure_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the README's row: what the embedding skip gains on each decoder."""
    groups = grouped(result)
    told, gains = [], []
    for (shape, parts, rate), rows in groups.items():
        plain = groups.get((shape, "", rate))
        if parts == "embedding-skip" and plain:
            told.append(f"{shape} at {rate:g}")
            gains.append(f"{told_loss(plain)} -> {told_loss(rows)}")
    what = "held-out loss after 80 M tokens without and with the embedding skip (seeds: several in a mean or listed): "
    found = [(what + "; ".join(told), "; ".join(gains))]
    fitted = result["fit"]
    for flops, shapes in fitted["best_rates"].items():
        kind = "GPT-2's vocabulary" if flops.startswith("gpt2") else "vocabulary 8,192"
        what = (
            f"held-out loss after 80 M tokens at {flops.removeprefix('gpt2 ')} GFLOPs with the head, {kind}, embedding "
        )
        what += "skip, each at the best of its learning rates: "
        told = [f"{name.removeprefix('gpt2 ')} ({rate:g})" for name, (_, rate) in shapes.items()]
        losses = [loss for loss, _ in shapes.values()]
        plain = [
            (mean(row["validation_loss"] for row in rows), name, rate)
            for (name, parts, rate), rows in groups.items()
            if not parts and name in (*shapes, *BESIDE.get(flops, ()))
        ]
        if plain:
            loss, name, rate = min(plain)
            told.append(f"without the skip {name.removeprefix('gpt2 ')} ({rate:g})")
            losses.append(loss)
        found.append((what + "; ".join(told), "; ".join(f"{loss:.3f}" for loss in losses)))
    orders = {score: mean(by.values()) for score, by in fitted["spearman"].items() if score != "balanced-parameters"}
    second = max(orders, key=lambda score: orders[score])
    ours = fitted["spearman"]["balanced-parameters"]
    what = (
        f"mean Spearman within the three of them with vocabulary 8,192 ({' / '.join(ASPECTS)} GFLOPs, five decoders "
        "each): `balanced-parameters`, fitted to them; fitted without the group that it orders; the next, "
        f"`{second}` (the groups are not of quite equal FLOPs); the paper's `entropy-poster`; `parameters`"
    )
    left_out = mean(one["spearman"] for one in fitted["left_out"].values())
    values = (mean(ours.values()), left_out, orders[second], orders["entropy-poster"], orders["parameters"])
    return [*found, (what, "; ".join(f"{value:.2f}" for value in values))]


def main() -> None:
    """Do the step asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("space.jsonl"))
    parser.add_argument("--jobs", default=JOBS, help="between semicolons; all by default")
    parser.add_argument("--gpus", default="0", help="numbers of the GPUs, between commas")
    parser.add_argument("--workers", type=int, default=2, help="models in flight on each GPU")
    parser.add_argument("--seconds", type=float, default=3600, help="start nothing later")
    parser.add_argument("--reserve", type=float, default=90, help="seconds that one may take")
    parser.add_argument("--collect", type=Path, nargs="+", metavar="RESULTS.jsonl")
    parser.add_argument("--device", default="")
    parser.add_argument("--stats", action="store_true")
    options = parser.parse_args()
    if options.collect:
        collect(options.collect, options.device)
    elif options.stats:
        from record import write_result

        recorded = json.loads((RESULTS / "space_study.json").read_text(encoding="utf-8"))["result"]
        print(write_result("space_study", {**recorded, "fit": fit(recorded)}))
    elif options.train:
        train(options)
    else:
        parser.error("give one of --train, --collect, --stats")


if __name__ == "__main__":
    main()
