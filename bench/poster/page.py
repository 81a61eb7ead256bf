"""What was recorded of the trained rows, as `docs/training.md` and the README show it: nothing is written by hand."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from merino_edge.training.zero_shot import TASKS, TaskScore, average
from poster.vocabulary import budget, told

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "poster_train.json"
PAGE = ROOT / "docs" / "training.md"
Figure = tuple[str, str]  # what, and the figure
BUDGET_EDGES = (158e9, 212e9)  # FLOPs with the head, between the presets' budgets
TOKENS = 80_000_000  # of a row as all rows are trained
KINDS = {
    "itself": "{}",
    "the same layers unshared": "unshared {}",
    "a plain decoder of equal FLOPs": "uniform of {}",
    "that at a learning rate of 1.1 / width": "uniform of {} at 1.1 / width",
    "what the default search chooses, FLOPs with the head equal, at 1.1 / width": "default at {}",
    "the same without the embedding skip": "default at {} without the skip",
    "with the skip at the learning rate that the sweep of the other rows chooses": "default at {}, swept",
    "what the former default chose where depth is free": "free balanced-parameters at {}",
    "what parameter count (and `parameters-per-depth`) chooses in the poster's space": "parameters at {}",
    "what `parameters-per-depth` chooses where depth is free": "free parameters-per-depth at {}",
    "what TE-NAS's scores choose there": "te-nas at {}",
}
SMALL = {
    "parameters-per-depth": "chosen by `parameters-per-depth`, a plain decoder of 4 layers of width 640",
    "parameters": "by `parameters`",
    "te-nas": "by TE-NAS's scores",
    "entropy": "by `entropy`",
    "entropy-poster, norms of its own for each layer": "the same with norms of its own for each layer",
    "entropy-poster, unshared": "the same unshared",
    "plain 768x3": "plain decoders of 3 layers of width 768",
    "plain 576x5": "5 of 576",
    "plain 512x6": "6 of 512",
    "plain 384x10": "10 of 384",
}
BOARD = {
    "default": "what the default search chooses, 8 layers of width 448 with the embedding skip",
    "default without the skip": "the same without the skip",
    "plain 512x6 at 1.1 / width": "plain decoders of 6 of 512 at a learning rate of 1.1 / width",
    "plain 576x5 at 1.1 / width": "5 of 576 so",
    "plain 640x4 at 1.1 / width": "4 of 640 so",
    "balanced-parameters": "at the rates of the sweep what the former default chose, 4 of 640",
    "parameters": "what parameter count chooses, 2 of 896",
    "plain 512x6": "plain decoders of 6 of 512",
    "plain 576x5": "5 of 576",
}
THREE_SEEDS = ("small", "board")
UNLEARNED = "opt-350m, whose norms come after each layer, stayed at the frequencies of words at all four learning rates"
HEAD = (
    "| row | what it is | unique; executed parameters, M | GFLOPs without; with head | learning rate | loss "
    "| bits per byte | WikiText-2: token; word | PTB: token; word |"
)
SMALL_HEAD = (
    "| row | what it is | unique parameters, M | GFLOPs without; with head | learning rate | loss, three seeds |"
)


def _shape(row: dict[str, Any]) -> str:
    """Return the shape in words, equal layers counted where none is shared."""
    shape, _, after = row["describe"].partition(", V ")
    blocks, comma, embedding = shape.partition(", embedding")
    parts = []
    for run in blocks.split(" | "):
        count, of, part = run.rpartition(" of ")
        parts += [part] * (int(count) if of else 1)
    more = comma + embedding + (", embedding skip" if "embedding skip" in after else "")
    if all("x1 " in part for part in parts):
        counted = [(len(list(same)), part.replace("x1 ", " ")) for part, same in groupby(parts)]
        return " / ".join(f"{count} layer{'s' * (count > 1)} {part}" for count, part in counted) + more
    return " / ".join(parts) + more


def _full(row: dict[str, Any]) -> str:
    judged = row["judged"]
    told = [f"{judged['validation']['loss']:.3f}", f"{judged['validation']['bits_per_byte']:.3f}"]
    for text in ("wikitext2, stride 512", "ptb, stride 512"):
        told.append(f"{judged[text]['perplexity']:.1f}; {judged[text]['word_perplexity']:.1f}")
    sizes = f"{row['parameters'] / 1e6:.1f}; {row['executed_parameters'] / 1e6:.1f}"
    flops = f"{row['flops'] / 1e9:.1f}; {row['flops_with_head'] / 1e9:.1f}"
    name = " = ".join([row["id"], *row.get("also", [])])
    return f"| {name} | {_shape(row)} | {sizes} | {flops} | {row['learning_rate']:g} | {' | '.join(told)} |"


def _name(row: dict[str, Any]) -> str:
    """Return the name of a row with what sets its training apart."""
    told = [f"{row['tokens'] / 1e6:.0f} M tokens"] if row["tokens"] > 2 * TOKENS else []
    told += [f"seed {row['seed']}"] if row["seed"] else []
    return ", ".join([row["id"], *told])


def _again(rows: list[dict[str, Any]], first: dict[str, dict[str, Any]]) -> list[str]:
    """Return the losses of rows that were trained from other first weights too."""
    told = []
    for name in dict.fromkeys(row["id"] for row in rows if row["seed"]):
        losses = [first[name], *(row for row in rows if row["id"] == name and row["seed"])]
        told.append(f"{name} " + ", ".join(f"{row['judged']['validation']['loss']:.3f}" for row in losses))
    return ["", "The same from other first weights (seeds 0 and 1), loss: " + "; ".join(told) + "."] if told else []


def _repeated(repeats: list[dict[str, Any]]) -> list[str]:
    """Return the losses of rows whose command was run more than once."""
    if not repeats:
        return []
    told = [f"{_name(row)} {', '.join(f'{loss:.3f}' for loss in row['validation_losses'])}" for row in repeats]
    return ["", "The same command run again, on other days and machines, loss: " + "; ".join(told) + "."]


def _cheaper(row: dict[str, Any], plain: dict[str, Any]) -> str:
    """Return a row of a smaller vocabulary; FLOPs of as much text as 1,024 tokens of GPT-2's have."""
    per_text = row["tokens"] / plain["tokens"] * row["flops_with_head"] / 1e9
    bits = row["judged"]["validation"]["bits_per_byte"]
    return (
        f"| {row['id']} | {_shape(row)} | {row['parameters'] / 1e6:.1f} | {row['tokens'] / 1e6:.1f} | {per_text:.1f} "
        f"| {row['learning_rate']:g} | {bits:.3f} |"
    )


def _small(rows: list[dict[str, Any]]) -> str:
    row, losses = rows[0], [r["judged"]["validation"]["loss"] for r in rows]
    flops = f"{row['flops'] / 1e9:.1f}; {row['flops_with_head'] / 1e9:.1f}"
    names = " = ".join([row["id"], *row.get("also", [])]).replace(f"{row['group']} ", "")
    return (
        f"| {names} | {_shape(row)} | {row['parameters'] / 1e6:.1f} | {flops} | {row['learning_rate']:g} "
        f"| {mean(losses):.3f} ± {stdev(losses):.3f} |"
    )


def _of_group(rows: list[dict[str, Any]], group: str) -> list[dict[str, Any]]:
    """Return the trainings of a group that are as long as most."""
    return [row for row in rows if row["group"] == group and row["tokens"] < 2 * TOKENS]


def _seeded(rows: list[dict[str, Any]], group: str) -> list[str]:
    """Return the table of a group whose rows have three seeds, the best first."""
    named: dict[str, list[dict[str, Any]]] = {}
    for row in _of_group(rows, group):
        named.setdefault(row["id"], []).append(row)
    if not named:
        return []
    ordered = sorted(named.values(), key=lambda rows: mean(r["judged"]["validation"]["loss"] for r in rows))
    return [
        "",
        f"{ordered[0][0]['tokens'] / 1e6:.1f} M tokens each, vocabulary 8,192, seeds 0, 1 and 2:",
        "",
        SMALL_HEAD,
        "| --- | --- | " + " | ".join(["---:"] * 4) + " |",
        *map(_small, ordered),
    ]


def asked_all(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that were asked every zero-shot task."""
    return [row for row in rows if len(row.get("tasks", [])) == len(TASKS)]


def over_tasks(row: dict[str, Any]) -> dict[str, Any]:
    """Return mean accuracy over the tasks, its standard error, and what guessing has on them."""
    return average([TaskScore(**task) for task in row["tasks"]])


def _zero_shot(rows: list[dict[str, Any]]) -> list[str]:
    """Return the accuracies of what was asked the zero-shot tasks; nothing where nothing was."""
    asked = asked_all(rows)
    if not asked:
        return []
    one_by_one = asked[0]["tasks"]
    names = [task["task"] for task in one_by_one]

    def cells(tasks: list[dict[str, Any]], key: str) -> list[str]:
        values = {task["task"]: task[key] for task in tasks}
        return ["" if values.get(name) is None else f"{values[name]:.3f}" for name in names]

    def line(name: str, average: str, values: list[str]) -> str:
        return f"| {name} | {average} | {' | '.join(values)} |"

    limit, guessed = asked[0]["limit"], over_tasks(asked[0])
    which = "all questions" if limit is None else f"{limit} random questions of each task at most"
    lines = []
    for row in asked:
        one = over_tasks(row)
        told = f"{one['accuracy']:.3f} ± {one['stderr']:.3f}"
        lines.append(line(_name(row), told, cells(row["tasks"], "accuracy")))
    again = [f"{_name(row)} ({row['asked_loss']:.3f})" for row in asked if "asked_loss" in row]
    fewer = [_name(row) for row in rows if "tasks" in row and row not in asked]
    notes = []
    if again:
        notes.append(f"Asked after the same command had run again; the held-out loss then: {'; '.join(again)}.")
    if fewer:
        notes.append(f"Left out, for they were not asked every task: {'; '.join(fewer)}.")
    return [
        "",
        f"Zero-shot accuracy, {which}, and the average of the {len(names)} tasks:",
        "",
        line("row", "average ± standard error", names),
        "| --- | " + " | ".join(["---:"] * (len(names) + 1)) + " |",
        *lines,
        line("chance", f"{guessed['chance']:.3f}", cells(one_by_one, "chance")),
        line("the most frequent answer", f"{guessed['majority']:.3f}", cells(one_by_one, "majority")),
        "",
        *notes,
    ]


def _made_here(rows: list[dict[str, Any]]) -> list[str]:
    """Return what as many tokens as GPT-2's are worth that were made from the text; decoder, rate and text the same."""
    alike = first_trainings(rows)
    told = []
    for row in (row for row in alike if row["group"] == "control"):
        pair = next(r for r in alike if r["group"] != "control" and r["model"] == row["model"])
        assert pair["learning_rate"] == row["learning_rate"], "compared at one rate"
        bits = [r["judged"]["validation"]["bits_per_byte"] for r in (row, pair)]
        told.append(f"{budget(row)} {bits[0]:.3f} ({bits[1]:.3f}, {pair['id']})")
    if not told:
        return []
    shorter = 1 - row["tokens"] / pair["tokens"]
    what = f"50,257 tokens made from this text spell it in {100 * shorter:.1f} % fewer than GPT-2's (in brackets)"
    return ["", f"{what}; bits a byte of the same decoder at the same rate on the same text: {'; '.join(told)}."]


def first_trainings(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trainings that are alike: one epoch at most, the first seed."""
    return [row for row in rows if row["tokens"] < 2 * TOKENS and not row["seed"]]


def table() -> str:
    """Return both tables and the list of what is missing."""
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))["result"]
    every = [row for row in recorded["rows"] if row["group"] not in (*THREE_SEEDS, "vocabulary", "control")]
    every.sort(
        key=lambda row: (*(row["flops_with_head"] > edge for edge in BUDGET_EDGES), row["judged"]["validation"]["loss"])
    )
    full = first_trainings(every)
    long = [row for row in every if row["tokens"] > 2 * TOKENS]
    cheaper = [row for row in recorded["rows"] if row["group"] == "vocabulary"]
    named = {row["id"]: row for row in full}
    pairs = [(named[f"uniform of {budget(row)}"], row) for row in cheaper]
    pairs.sort(key=lambda pair: (pair[0]["flops"], int(pair[1]["id"].split()[1])))
    where = {row.get("device", recorded["device"]) for row in long}
    lines = [
        f"{full[0]['tokens'] / 1e6:.1f} M tokens each (one epoch), seed 0, {recorded['device']}:",
        "",
        HEAD,
        "| --- | --- | " + " | ".join(["---:"] * 7) + " |",
        *map(_full, full),
        *_again(every, named),
        "",
        f"{long[0]['tokens'] / 1e6:.0f} M tokens each ({long[0]['epochs']:.1f} epochs of the same text), at the "
        f"learning rates above, seed 0, {' or '.join(sorted(where))}:",
        "",
        HEAD,
        "| --- | --- | " + " | ".join(["---:"] * 7) + " |",
        *map(_full, long),
        *_repeated(recorded["repeats"]),
        *_zero_shot(every),
        "",
        "The same text with a smaller vocabulary, which has more tokens for it and a cheaper head:",
        "",
        "| row | what it is | unique parameters, M | tokens, M | GFLOPs, head included, of the text of 1,024 tokens of "
        "GPT-2's | learning rate | bits per byte |",
        "| --- | --- | " + " | ".join(["---:"] * 5) + " |",
        *dict.fromkeys(_cheaper(row, plain) for plain, chosen in pairs for row in (plain, chosen)),
        "",
        told(cheaper),
        *_made_here(recorded["rows"]),
        *(line for group in THREE_SEEDS for line in _seeded(recorded["rows"], group)),
    ]
    if recorded["missing"]:
        lines += ["", "Not trained, for want of device time: " + "; ".join(recorded["missing"]) + "."]
    return "\n".join(lines)


def write_page() -> None:
    """Put the tables between their marks."""
    import shape_study
    import space_study

    def result(name: str) -> Any:
        return json.loads((RESULTS.parent / f"{name}.json").read_text(encoding="utf-8"))["result"]

    shapes = shape_study.page_table(result("shape_study")["rows"])
    space = space_study.page_table(result("space_study"))
    aspects = space_study.aspect_table(result("space_study"))
    text = PAGE.read_text(encoding="utf-8")
    for mark, made in (("rows", table()), ("shapes", shapes), ("space", space), ("aspects", aspects)):
        before, _, rest = text.partition(f"<!-- {mark} -->")
        _, _, after = rest.partition(f"<!-- /{mark} -->")
        text = f"{before}<!-- {mark} -->\n\n{made}\n\n<!-- /{mark} -->{after}"
    PAGE.write_text(text, encoding="utf-8")


def full_rows(r: dict[str, Any]) -> list[Figure]:
    """Return the README's rows of the poster's models."""
    alike = first_trainings(r["rows"])
    loss = {name: row["judged"]["validation"]["loss"] for row in alike for name in (row["id"], *row.get("also", []))}
    two, one, *alone = r["training_loop"]
    bare = [f"{t['what']} {'once more' if t['compiled_before'] else 'on a bare machine'}" for t in alone]
    told = [
        (
            f"the loop of `merino-edge train` on {two['what']}, then on one GPU: tokens/s; held-out loss",
            f"{two['steady_tokens_per_s'] / 1e3:.0f} k, {one['steady_tokens_per_s'] / 1e3:.0f} k; "
            f"{two['validation_loss']:.3f}, {one['validation_loss']:.3f}",
        ),
        (
            f"the same command at a context of 1,024 on one GPU, {', '.join(bare)}: model FLOPs utilisation of "
            "989 TFLOP/s; tokens/s; start-up and compilation, of how much (imports apart; packages had been "
            "compiled to bytecode, as pip does)",
            ", ".join(f"{100 * t['mfu']:.1f} %" for t in alone)
            + "; "
            + ", ".join(f"{t['steady_tokens_per_s'] / 1e3:.0f} k" for t in alone)
            + "; "
            + ", ".join(f"{t['startup_seconds']:.1f} of {t['seconds']:.0f} s" for t in alone)
            + f" ({', '.join(format(t['import_seconds'], '.0f') for t in alone)} s)",
        ),
    ]
    for name in ("merino-52m", "merino-61m", "merino-64m"):
        tokens = next(row["tokens"] for row in alike if row["id"] == name)
        have = {what: key.format(name) for what, key in KINDS.items() if key.format(name) in loss}
        what = f"held-out loss after {tokens / 1e6:.0f} M tokens (one epoch), nats a token, one seed, {name}: "
        told.append((what + "; ".join(have), "; ".join(f"{loss[key]:.3f}" for key in have.values())))
    others = [row["id"] for row in alike if row["group"] == "baseline"]
    what = f"the same for {'; '.join(others)} ({UNLEARNED})"
    told.append((what, "; ".join(f"{loss[name]:.3f}" for name in others)))
    return [*told, *_longer(r["rows"]), *_seeds(r["rows"], loss), *_vocabularies(alike)]


def _longer(rows: list[dict[str, Any]]) -> list[Figure]:
    """Return what was trained on more tokens: losses, and where it was asked the zero-shot tasks its accuracy."""
    long = [row for row in rows if row["tokens"] > 2 * TOKENS and row["group"] not in THREE_SEEDS]
    if not long:
        return []
    names = "; ".join(row["id"] for row in long)
    length = f"{long[0]['tokens'] / 1e6:.0f} M tokens ({long[0]['epochs']:.1f} epochs)"
    what = f"held-out loss after {length}, one seed: {names}"
    told = [(what, "; ".join(f"{row['judged']['validation']['loss']:.3f}" for row in long))]
    asked = asked_all(long)
    if asked:
        means = [over_tasks(row) for row in asked]
        what = f"their mean accuracy on {len(TASKS)} zero-shot tasks, {asked[0]['limit']} questions of each at most: "
        what += "; ".join(row["id"] for row in asked) + "; chance; always the most frequent answer"
        have = [f"{one['accuracy']:.3f} ± {one['stderr']:.3f}" for one in means]
        told.append((what, "; ".join([*have, f"{means[0]['chance']:.3f}", f"{means[0]['majority']:.3f}"])))
    return told


def _seeds(rows: list[dict[str, Any]], first: dict[str, float]) -> list[Figure]:
    """Return rows trained from two first weights: the noise of one training."""
    again = {
        row["id"]: row["judged"]["validation"]["loss"]
        for row in rows
        if row["seed"] and row["group"] not in THREE_SEEDS
    }
    if not again:
        return []
    what = "held-out loss from two first weights, 80 M tokens: " + "; ".join(again)
    return [(what, "; ".join(f"{first[name]:.3f}, {loss:.3f}" for name, loss in again.items()))]


def _vocabularies(rows: list[dict[str, Any]]) -> list[Figure]:
    """Return what vocabularies made from the text gain at equal FLOPs of the same text."""
    have = {row["id"]: row for row in rows}
    made: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["group"] == "vocabulary":
            made.setdefault(budget(row), []).append(row)
    figures = []
    for name, several in sorted(made.items()):
        plain = have[f"uniform of {name}"]
        default = [have[i] for i in have if i == f"free balanced-parameters at {name}"]
        several.sort(key=lambda row: int(row["id"].split()[1]))
        sizes = [
            f"{int(row['id'].split()[1]):,}{row['id'].partition(',')[1]}{row['id'].partition(',')[2]}"
            for row in several
        ]
        ours = "; what the former default chose" if default else ", which the former default chose too"
        what = (
            f"held-out bits per byte at equal FLOPs of the same text, head included, the budget of {name}: GPT-2's "
            f"vocabulary of 50,257 (plain decoder{ours}); "
            f"what the former default chose with one made from the text, of {'; '.join(sizes)}"
        )
        bits = (f"{one['judged']['validation']['bits_per_byte']:.3f}" for one in (plain, *default, *several))
        figures.append((what, "; ".join(bits)))
    return figures


def small_rows(r: dict[str, Any]) -> list[Figure]:
    """Return the README's rows of the studies with three seeds."""
    return [
        *_three_seeds(r, "small", SMALL, "FLOPs without the head within 6 %"),
        *_three_seeds(r, "board", BOARD, "FLOPs with the head within 4 %"),
    ]


def _three_seeds(r: dict[str, Any], group: str, names: dict[str, str], equal: str) -> list[Figure]:
    rows = _of_group(r["rows"], group)
    if not rows:
        return []
    losses: dict[str, list[float]] = {}
    for row in rows:
        losses.setdefault(row["id"].removeprefix(f"{group} "), []).append(row["judged"]["validation"]["loss"])
    have = [name for name in names if name in losses]
    what = (
        f"vocabulary 8,192, {rows[0]['tokens'] / 1e6:.0f} M tokens, {equal}, three seeds (mean ± standard deviation): "
    )
    values = (f"{mean(losses[name]):.3f} ± {stdev(losses[name]):.3f}" for name in have)
    return [(what + "; ".join(names[name] for name in have), "; ".join(values))]


def twenty_million_rows(r: dict[str, Any]) -> list[Figure]:
    """Return the README's rows of an earlier campaign: baselines on another text."""
    loss = {row["id"]: row["judged"]["validation"]["loss"] for row in r["rows"]}
    others = [name for name in ("pythia-70m", "pythia-162m", "gpt2-124m", "opt-125m") if name in loss]
    return [
        (
            "held-out loss of another text after 20 M tokens, learning rates from a shorter sweep, one seed: "
            + "; ".join(others),
            "; ".join(f"{loss[name]:.3f}" for name in others),
        ),
    ]
