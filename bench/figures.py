"""Write the README's table of figures from the recorded results: no number there is typed by hand.

.venv/bin/python bench/figures.py            # rewrites the part between the markers
.venv/bin/python bench/figures.py --check    # exit 1 where the README says something else
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache_study import figure_rows as cache_rows
from distil import figure_rows as distil_rows
from peers.page import compared
from poster.page import full_rows, small_rows, twenty_million_rows
from poster.table import figure_rows
from skip_time import figure_rows as skip_rows
from space_study import figure_rows as space_rows
from variants import figure_rows as variants_rows

from merino_edge.architecture import Architecture

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
Row = tuple[str, str]


def search_speed(r: dict[str, Any]) -> list[Row]:
    """Speed of the exact search."""
    scored, loop, default = r["score_and_filter"], r["svd_loop"], r["default_search"]
    return [
        (
            f"a whole search of the default space, a limit on latency and one on memory, one core: {default['size']:,} "
            f"architectures in {default['classes']:,} classes, {default['mode']}; winner, front, what each limit costs",
            f"{1e3 * default['cpu_p50_s']:.0f} ms",
        ),
        (
            "scoring and filtering all 186,624 architectures, one core (the paper reports 0.05 h for its search)",
            f"{1e3 * scored['cpu_p50_s']:.0f} ms",
        ),
        (
            f"the same by an SVD for each matrix, extrapolated from {loop['sample']} architectures",
            f"{loop['extrapolated_s'] / 3600:.0f} h",
        ),
        (
            "largest difference between the closed form and those SVDs",
            f"{100 * loop['largest_difference_of_closed_form']:.2g} %",
        ),
        ("a budget that nothing meets is answered in", f"{1e3 * r['infeasible']['cpu_p50_s']:.0f} ms"),
        *larger_spaces(r.get("infeasible_cases", []), r.get("fronts_of_mixed_widths", [])),
    ]


def larger_spaces(cases: list[dict[str, Any]], fronts: list[dict[str, Any]]) -> list[Row]:
    """Speed of the answers to impossible limits beyond the poster's space, and of fronts where widths mix."""
    by_space: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        by_space.setdefault(f"`{case['space']}` ({case['size']:,})", []).append(case)
    rows = [
        (
            f"the same on {space}: " + "; ".join(case["what"] for case in found),
            "; ".join(f"{1e3 * case['cpu_p50_s']:.0f} ms" for case in found),
        )
        for space, found in by_space.items()
    ]
    return rows + [
        (
            f"the exact front over score, latency, parameters and memory of {front['size']:,} architectures whose "
            f"widths mix freely, `{front['score']}`: {front['members']:,} members",
            f"{1e3 * front['seconds']:.0f} ms",
        )
        for front in fronts
    ]


def proxy_stats(r: dict[str, Any]) -> list[Row]:
    """What the scores are worth, on models that were trained."""
    names = ("balanced-parameters", "parameters-per-depth", "entropy", "entropy-poster")
    result = []
    for group, what in (("all", "trained block-shared decoders"), ("equal FLOPs", "of them at equal FLOPs")):
        found = r["groups"][group]
        values = (f"{found['scores'][name]['spearman']['value']:.2f}" for name in names)
        result.append(
            (
                f"ranking {found['n']} {what} (on a GPU, {found['tokens'] / 1e6:.0f} M tokens each), Spearman: "
                "`balanced-parameters` (the default); `parameters-per-depth`; `entropy` with beta "
                f"{r['fitted_on_low_and_high']['beta']}, "
                "fitted on other budgets; `entropy-poster`, the paper's literal formula",
                "; ".join(values),
            )
        )
    return result


def proxy_paired(r: dict[str, Any]) -> list[Row]:
    """What the default beats for certain, and what it does not."""
    result = []
    for group, what in (("all", "the same models"), ("equal FLOPs", "those at equal FLOPs")):
        pairs = {n: p["spearman"]["interval"] for n, p in r["paired"][group]["balanced-parameters"].items()}
        beaten, open_ = ([n for n, (low, _) in pairs.items() if (low > 0) == sure] for sure in (True, False))
        result.append(
            (
                f"the default against {len(pairs)} other scores on {what}, paired bootstrap of Spearman, 95 %: better "
                f"for certain than {_listed(beaten)}; the interval holds 0 against {_listed(open_)}",
                f"{len(beaten)} of {len(pairs)}",
            )
        )
    best = max(
        (n for n in ("synflow", "grad-norm", "snip", "ntk-condition", "linear-regions", "w-pca")),
        key=lambda n: r["groups"]["all"]["scores"][n]["spearman"]["value"],
    )
    values = (f"{r['groups'][g]['scores'][best]['spearman']['value']:.2f}" for g in ("all", "equal FLOPs"))
    result.append(
        (
            "the best of six scores that draw a network (synflow, grad-norm, snip, NTK condition, linear regions, "
            f"W-PCA), `{best}`: Spearman on all; at equal FLOPs",
            "; ".join(values),
        )
    )
    return result


def shape_study(r: dict[str, Any]) -> list[Row]:
    """The default on tables of trained models that it was not fitted to."""
    judged = r["judged"]
    ours = judged["spearman"][judged["default"]]
    tables = "; ".join(f"{name} ({judged['n'][name]})" for name in ours)
    result = [
        (
            f"Spearman of `{judged['default']}`, its numbers fitted to none of these, on {tables}; the shapes are "
            "plain decoders of equal FLOPs, of all widths at the same two learning rates",
            "; ".join(f"{value:.2f}" for value in ours.values()),
        )
    ]
    for group, what in (("all", "these five tables"), ("without the shapes", "the three without the shapes")):
        means, pairs = judged["mean"][group], judged["default_less_other_95"][group]
        beaten, open_ = ([n for n, (low, _) in pairs.items() if (low > 0) == sure] for sure in (True, False))
        second = max((n for n in pairs), key=lambda n: means[n])
        result.append(
            (
                f"the mean over {what}: the default; the next, `{second}`; by paired bootstrap, 95 %, better for "
                f"certain than {_listed(beaten)}; the interval holds 0 against {_listed(open_)}",
                f"{means[judged['default']]:.2f}; {means[second]:.2f}; {len(beaten)} of {len(pairs)}",
            )
        )
    return result


def shared_study(r: dict[str, Any]) -> list[Row]:
    """Every score on decoders trained by today's recipe, which no score was fitted to."""
    judged, tokens, fitted = r["judged_later_draws"], r["rows"][0]["tokens"], r["fit"]
    ours, groups, inside = judged["default"], judged["groups"], judged["mean_inside_budgets"]
    names = "; ".join(f"{name} ({group['scores'][ours]['n']})" for name, group in groups.items())

    def spearman(score: str, of: dict[str, Any] = groups) -> str:
        return "; ".join(f"{group['scores'][score]['spearman']['value']:.2f}" for group in of.values())

    def ahead(pairs: dict[str, Any]) -> str:
        return f"{sum(low > 0 for low, _ in pairs.values())} of {len(pairs)}"

    rivals = [name for name in groups["all"]["scores"] if name != ours]
    best = [max(rivals, key=lambda n: group["scores"][n]["spearman"]["value"]) for group in groups.values()]
    paired = [{n: p["interval"] for n, p in group["default_less_other"].items()} for group in groups.values()]
    open_ = [_listed([n for n, (low, _) in pairs.items() if low <= 0]) for pairs in paired]
    second = max(rivals, key=lambda n: inside["spearman"][n])
    above = ("; ".join(f"{group['choice_above_best'][n]:.3f}" for group in groups.values()) for n in (ours, rivals[0]))
    counts, before = fitted["decoders"], fitted["before"]
    return [
        (
            f"Spearman of `{ours}` (the default) on decoders trained for {tokens / 1e6:.0f} M tokens as `train` trains "
            f"today (embedding skip, a rate by width), no score fitted to any: {names}",
            spearman(ours),
        ),
        (
            "the best of the other scores on each of these",
            "; ".join(
                f"`{name}` {group['scores'][name]['spearman']['value']:.2f}"
                for name, group in zip(best, groups.values(), strict=True)
            ),
        ),
        *((f"`{name}` on these", spearman(name)) for name in ("unique-parameters", "entropy", "entropy-poster")),
        (
            "other scores than which the default is better for certain there, paired bootstrap of Spearman, 95 %; the "
            f"interval holds 0 against: {'; '.join(open_)}",
            "; ".join(map(ahead, paired)),
        ),
        (
            f"the mean of the {sum('equal' in name for name in groups)} groups of equal FLOPs: the default; the next, "
            f"`{second}`; better for certain than",
            f"{inside['spearman'][ours]:.2f}; {inside['spearman'][second]:.2f}; "
            + ahead(inside["default_less_other_95"]),
        ),
        (
            f"nats by which what the default, then `{rivals[0]}`, would choose of each group ended above its best",
            " / ".join(above),
        ),
        (
            f"Spearman of the default on these groups and the {counts['first draw']} decoders that its three numbers "
            f"are fitted to (and to {counts['plain']} plain ones)",
            spearman(ours, r["judged"]["groups"]),
        ),
        (
            "the default as it was before, depth counted in executed layers: on the decoders it is fitted to now; on "
            f"the {counts['later draws']} others",
            "; ".join(f"{before['spearman'][name]:.2f}" for name in ("first draw", "later draws")),
        ),
    ]


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def te_nas(r: dict[str, Any]) -> list[Row]:
    """A candidate by TE-NAS's scores and by ours."""
    each, other = r["each"], r["each"]["te_nas"]["energy_j"]
    return [
        (
            f"one candidate by TE-NAS's two scores, three seeds, and by the entropy over the whole space, one core "
            f"({r['candidates']} candidates; energy: {r['energy']})",
            f"{each['te_nas']['cpu_s']:.1f} s{'' if other is None else f', {other:.0f} J'}; "
            f"{1e9 * each['entropy_whole_space']['cpu_s']:.0f} ns",
        )
    ]


def dynamic(r: dict[str, Any]) -> list[Row]:
    """Dynamic programming against evolution."""
    result = []
    for score in dict.fromkeys(row["score"] for row in r["wide"]):
        rows = [row for row in r["wide"] if row["score"] == score]
        ratios = ", ".join(f"{100 * (row['mean_ratio'] - 1):+.1f} %" for row in rows)
        result.append(
            (
                f"4e10 architectures, {len(rows)} budgets, `{score}`: what dynamic programming finds, over the mean of "
                f"{r['seeds']} evolutions given the same time",
                ratios,
            )
        )
    return result


def together(r: dict[str, Any]) -> list[Row]:
    """Dynamic programming and evolution, both asked."""
    told = []
    for other in ("dp", "evolution"):
        ratios = sorted(row["dp+evolution"]["score"] / row[other]["score"] - 1 for row in r["rows"])
        ahead = sum(ratio > 1e-9 for ratio in ratios)
        told.append(f"{ahead} better, by up to {100 * ratios[-1]:.1f} %, worst {100 * ratios[0]:+.1f} %")
    seconds = statistics.median(row["dp+evolution"]["seconds"] for row in r["rows"])
    return [
        (
            f"{len(r['rows'])} searches of {len({row['space'] for row in r['rows']})} other spaces beyond listing: "
            "dynamic programming and evolution together, as `search` asks them, over the former; the latter; seconds",
            f"{told[0]}; {told[1]}; {seconds:.1f} s",
        )
    ]


def presets(r: dict[str, Any]) -> list[Row]:
    """The presets, and how firm they are."""
    result = []
    for name, found in r.items():
        winner, moves = found["winner"], found["moves"]
        blocks = winner["architecture"].replace(" | ", " / ")  # a bar would end the cell
        same = sum(other["architecture"] == winner["architecture"] for other in moves.values())
        hits = found["seeds"].get(winner["architecture"], 0)
        result.append(
            (
                f"`{name}` (ours for the poster's budget, not the authors' network): {blocks}; unique "
                f"parameters; FLOPs; the same under so many of {len(moves)} other weights and scores, and of "
                f"{sum(found['seeds'].values())} evolutionary seeds",
                f"{winner['parameters'] / 1e6:.1f} M; {winner['flops'] / 1e9:.0f} G; {same}; {hits}",
            )
        )
    return result


def proxy_lts(r: dict[str, Any]) -> list[Row]:
    """The entropy on decoders without sharing, trained by others."""
    mean = r["mean_in_10pct"]
    return [
        (
            "583 decoders without sharing (LiteTransformerSearch), pairs within 10 % of parameters ordered rightly: "
            "entropy, its weights chosen on the two other tables; parameter count",
            f"{mean['entropy, chosen']:.3f}; {mean['decoder-parameters']:.3f}",
        )
    ]


def evolution(r: dict[str, Any]) -> list[Row]:
    """The evolutionary search against the exact one."""
    hits = [budget["hits_by_share"]["0.05"] for budget in r["poster"]]
    return [
        (
            f"evolutionary search, 5 % of the space looked at, {len(hits)} budgets: seeds that find the class of the "
            "exact optimum",
            f"{min(hits)} of {r['seeds']} for the hardest",
        ),
        (
            f"4e10 architectures, {len(r['wide'])} budgets, {r['wide_evaluations']:,} looked at: the score found over "
            f"that of pymoo's genetic algorithm, means of {r['seeds']} seeds; seeds of which its is the better",
            ", ".join(f"{100 * (w['mean_ratio'] - 1):+.2f} %" for w in r["wide"])
            + f"; {', '.join(str(w['better']) for w in r['wide'])}",
        ),
    ]


def latency_hat(r: dict[str, Any]) -> list[Row]:
    """The latency model on a real Raspberry Pi 4 (HAT's table, not ours)."""
    found = next(s for s in r["by_samples"] if s["samples"] == 25)
    return [
        (
            f"error on {r['rows'] - 25:,} transformers timed on a Raspberry Pi 4 (HAT's table), from 25 of them; "
            "within 10 %",
            f"{100 * found['mape']:.2f} %; {100 * found['within_10pct']:.1f} %",
        )
    ]


def ring(r: dict[str, Any]) -> list[Row]:
    """Once round the ring on this machine."""
    profile, search, train = r["profile"], r["search"], r["train"]
    tg, pp = (profile["latency_models"][test] for test in ("tg", "pp128"))
    measured, limit = search["measured"], search["limits"]["latency_ms"]["upper"]
    rows = {(row["recipe"], row["test"]): row for row in r["bench"]}
    fp32, int8 = rows["fp32", "tg"], rows["dynamic_wi8_afp32", "tg"]
    change = int8["perplexity"] / fp32["perplexity"] - 1
    return [
        (
            f"predicting models not measured, from {profile['models']} measured in {profile['seconds']:.0f} s: "
            "mean error of tg; pp128",
            f"{100 * tg['mape']:.1f} %; {100 * pp['mape']:.1f} %",
        ),
        (
            f"tg asked for: at most {limit:g} ms; measured on the winner",
            f"{measured['tg_ms']:.3g} ms ({'kept' if search['verified'] else 'not kept'})",
        ),
        (
            f"training the winner, {search['parameters'] / 1e6:.1f} M parameters, on this CPU: tokens; "
            "perplexity of held-out text",
            f"{train['tokens'] / 1e6:.2f} M in {train['seconds']:.0f} s; {train['perplexity']:.0f}",
        ),
        ("file of the int8 export over its unique bytes", f"{int8['file_bytes'] / int8['unique_bytes']:.4f}"),
        ("int8 over fp32: tg; perplexity", f"{int8['p50_ms'] / fp32['p50_ms']:.2f} x; {100 * change:+.2f} %"),
        ("the whole ring, `make demo` after its set-up", f"{r['seconds'] / 60:.1f} min"),
    ]


def export_sizes(r: dict[str, Any], how: str = "") -> list[Row]:
    """What sharing saves, in the file and in memory."""
    rows = {(row["recipe"], row["form"]): row for row in r["rows"]}
    result = []
    four_bits = ("weight_only_wi4_b128_afp32", "weight_only_wi4_b32_afp32", "dynamic_wi4_b128_afp32")
    for recipe in ("fp32", "dynamic_wi8_afp32", *four_bits):
        row = rows.get((recipe, "standard"), rows.get((recipe, "fast")))
        if row is None:
            continue
        result.append(
            (
                f"60 M model, {recipe}{how}: file; anonymous memory after load, each over the unique bytes; "
                "memory gained when every depth grows from 1 to 8",
                f"{row['file_bytes'] / row['unique_bytes']:.4f}; {row['anonymous_bytes'] / row['unique_bytes']:.2f}; "
                f"{max(0, row['growth_bytes']) / 1e6:.2f} MB",
            )
        )
    return result


def prefill_chunks(r: dict[str, Any]) -> list[Row]:
    """What reading a prompt in chunks saves."""
    found = []
    for row in r["rows"]:
        cpu = {chunk["chunk"]: chunk["cpu_ms"] for chunk in row["chunks"]}
        name = f"{row['recipe']} {row['form']}" + (" as TFLite" if row["format"] == "tflite" else "")
        found.append(f"{name} {cpu[max(cpu)] / cpu[row['shipped']]:.2f} x")
    what = (
        "60 M model, a prompt of 1,024 at once over the same in chunks as sessions feed it: processor time, one thread"
    )
    return [(what, "; ".join(found))]


def arm(r: dict[str, Any]) -> list[Row]:
    """Whether every recipe's file computes rightly on emulated Arm cores, by runtime."""
    found = []
    for runtime in ("onnxruntime-1.32.0", "onnxruntime-1.23.2", "ai-edge-litert-2.3.0"):
        rows = [row for row in r["rows"] if row["runtime"] == runtime]
        right = sum(1 for row in rows if row["runs"] and row["right"])
        found.append(f"{runtime} {right} of {len(rows)}")
    what = "every recipe in every form on emulated Cortex-A53, A72 and A76: files that run with right numbers"
    return [(what, "; ".join(found))]


def quantization(r: dict[str, Any]) -> list[Row]:
    """What each recipe and quantizer costs a trained model."""
    change = {(row["recipe"], row["quantizer"]): f"{100 * row['perplexity_change']:+.2f} %" for row in r["rows"]}
    trained, base = r["trained"], r["rows"][0]["perplexity_fp32"]
    parameters = Architecture.from_json(r["model"]).unique_parameters
    model = f"{parameters / 1e6:.1f} M model trained on {trained['tokens'] / 1e6:.0f} M tokens"
    result = [
        (
            f"{model}, perplexity {base:.0f}: change by `dynamic_wi8_afp32`; by `weight_only_wi8_b32_afp32`",
            f"{change['dynamic_wi8_afp32', 'rtn']}; {change['weight_only_wi8_b32_afp32', 'rtn']}",
        )
    ]
    for kind in ("b128", "b32", "b32_head8"):
        values = (change[f"weight_only_wi4_{kind}_afp32", quantizer] for quantizer in ("rtn", "mse", "gptq"))
        what = f"the same by `weight_only_wi4_{kind}_afp32`: round to nearest; `mse`; `gptq` (the default)"
        result.append((what, "; ".join(values)))
    return result


def on_threads(r: dict[str, Any]) -> str:
    """Return how many threads, where they were asked for."""
    return f" with {r['threads']} thread" if r.get("threads") else ""


def accuracy(found: dict[str, Any], between: str = ", ") -> str:
    """Return error, share within 10 % and Kendall's tau of a latency model."""
    return between.join(
        [f"{100 * found['mape']:.1f} %", f"{100 * found['within_10pct']:.0f} %", f"{found['kendall']:.3f}"]
    )


def latency_local(r: dict[str, Any]) -> list[Row]:
    """Held-out models on this machine."""
    result = []
    on = on_threads(r)
    if not all("passes_apart" in found for tests in r["recipes"].values() for found in tests.values()):
        on += ", by the fastest pass of each, as was the rule"
    for recipe, tests in r["recipes"].items():
        for test, found in tests.items():
            words = f"{found['held_out']} held-out models of space {r['space']} on this machine{on}, {recipe}, {test}: "
            words += "error; within 10 %; Kendall tau"
            told = accuracy(found, "; ")
            alike, before = found.get("same_passes"), found.get("since_last_record")
            if alike:
                words += "; where the profiled models are measured in the same passes"
                told += f"; {accuracy(alike)}"
            if apart := found.get("passes_apart"):
                words += "; two passes over one model differ, in the mean, by"
                told += f"; {100 * apart:.1f} %"
            if fastest := found.get("fastest_pass"):
                words += "; were the fastest pass of each model what counts"
                told += f"; {accuracy(fastest)}"
            if before:
                words += "; the machine's own difference to the record before"
                told += f"; {100 * before['mean_difference']:.1f} %"
            result.append((words, told))
    return result


def placement(r: dict[str, Any]) -> list[Row]:
    """Where the host of a virtual machine puts its processors."""
    if len(r["places"]) < 2:
        return [("places of this machine's processors that were seen", str(len(r["places"])))]
    near, *_, far = r["places"]
    tests = [t for t in near["ms"] if "median" in near["ms"][t] and "median" in far["ms"][t]]
    ratios = "; ".join(f"{t} {far['ms'][t]['median'] / near['ms'][t]['median']:.2f}" for t in tests)
    return [
        (
            f"this virtual machine's processors {near['core_distance_ns']:.1f} ns and {far['core_distance_ns']:.1f} ns "
            f"apart ({100 * far['share']:.0f} % of the time the latter): the time of a test, as a ratio",
            ratios,
        )
    ]


def peers(r: dict[str, Any]) -> list[Row]:
    """Beside what a user would take instead; docs/peers.md has everybody."""
    cases = (
        ("60 M model, int8 beside its export by torch.onnx in float32", "A60", "A60: torch.onnx fp32"),
        ("preset merino-61m, int8 beside llama.cpp with GPT-2-124M Q8_0", "merino-61m", "llama.cpp GPT-2-124M Q8_0"),
    )
    result = []
    for what, model, other in cases:
        found = [
            compared(r, other, f"{model}: ours, ONNX int8 fast, head b128", test, threads)
            for test in ("decode", "prefill")
            for threads in r["threads"]
        ]
        told = "; ".join(f"{ratio['value']:.1f} x" if ratio else "not measured" for ratio in found)
        counts = " and ".join(map(str, r["threads"]))
        result.append((f"{what}: speed of decoding, then of a prompt of {r['prompt']:,}, on {counts} threads", told))
    return result


def demo_model(r: dict[str, Any]) -> list[Row]:
    """The model that ships."""
    exported, training = r["evaluation"]["exports"][0], r["training"]
    return [
        (
            f"the demo model, {training['result']['tokens'] / 1e6:.0f} M tokens in "
            f"{training['result']['seconds']:.0f} s on one {training['device']}: archive; held-out perplexity of its "
            "int8 file, against its checkpoint; bits per byte",
            f"{r['bytes'] / 1e6:.1f} MB; {exported['perplexity']:.1f}, {100 * exported['change']:+.2f} %; "
            f"{exported['bits_per_byte']:.3f}",
        )
    ]


def faults(r: dict[str, Any]) -> list[Row]:
    """What was broken on purpose, and what broke of it."""
    words = {
        "kills": "kill -9 at system calls of install, upgrade, rollback, collection, twice in a row as well",
        "kill-ends": "kill -9 of the host, the agent and sshd at random bytes of a deployment",
        "power": "power cuts that lose what was not flushed",
        "board-power": "an emulated board (ext4) whose power goes in each stage of a deployment",
        "errors": "EIO, ENOSPC, EDQUOT, EROFS and EMFILE at any call",
        "network": "networks that close, reset, stall, trickle or garble at any byte",
        "host-keys": "host keys judged beside `ssh`, under three policies",
        "fuzz": "fuzzed frames",
        "attacks": "attacks of a hostile device by hand",
        "boards": "fake boards whose sensors disturb a run, or do not",
        "lock": "kills among twenty contenders for one lock",
    }
    found = [(text, r["campaigns"][name]) for name, text in words.items() if name in r["campaigns"]]
    return [(text, f"{c['hits']:,} hit, {c['failures']} got through") for text, c in found]


def upload(r: dict[str, Any]) -> list[Row]:
    """Uploads beside scp."""
    return [
        (
            f"a file of {row['megabytes']} MiB to the agent over the same sshd, of `scp`'s speed: paramiko; `ssh`; "
            "the same where what `scp` wrote is flushed too, as ours is",
            "; ".join(f"{row[of][way]:.2f}" for of in ("of_scp", "of_scp_flushed") for way in ("paramiko", "openssh")),
        )
        for row in r["sizes"]
    ]


def constraints(r: dict[str, Any]) -> list[Row]:
    """What a user sees who measures a winner again."""
    worst = max(row["nearest_binding"] for row in r["rows"] if row["valid"])
    what, figure = "within their limits", f"{r['kept']} of {r['counted']}"
    on = on_threads(r)
    if "most_room" not in r:
        on += ", with a tenth of room at most for a restless machine, as was the rule"
    if "kept_by_median" in r:
        what, figure = f"{what}; by the median of three processes", f"{figure}; {r['kept_by_median']}"
    if "kept_as_it_came" in r:
        what += "; by one that waits for no placement of the machine's processors"
        figure += f"; {r['kept_as_it_came']} of {r['budgets']}"
    return [
        (
            f"winners of {r['budgets']} random budgets in space {r['space']} on this machine{on}, measured once more "
            f"by one fresh process: {what}; the worst over its limit in the first",
            f"{figure}; {100 * (worst - 1):+.1f} %",
        )
    ]


def row_exports(r: dict[str, Any]) -> list[Row]:
    """What 8 and 4 bits cost models that were trained for long."""
    told: dict[str, list[dict[str, Any]]] = {}
    for row in r["rows"]:
        told.setdefault(row["row"], []).append(row)
    found = []
    for name, rows in told.items():
        recipes = ", ".join(f"`{row['recipe']}`" + (" as TFLite" if row["format"] == "tflite" else "") for row in rows)
        what = (
            f"{name} trained on {rows[0]['trained_tokens'] / 1e6:.0f} M tokens, perplexity of held-out text by the "
            f"exported file over that of float32: {recipes}"
        )
        found.append((what, "; ".join(f"{100 * row['perplexity_change']:+.2f} %" for row in rows)))
    return found


def overflow(r: dict[str, Any]) -> list[Row]:
    """What int8 weights do on x86 without VNNI, and what keeping them within 16 bits costs."""
    ways = "as scales of the largest weight alone leave them; as they are kept now"
    names = ", ".join(r["logits"])
    rows = [
        (
            f"logits of `dynamic_wi8_afp32` on x86 without VNNI (an emulated {r['processor']}), random weights of "
            f"{names}, off by how many standard deviations: {ways}; what rounding activations does by itself",
            "; ".join(
                ", ".join(f"{of[way][what]:.2f}" for of in r["logits"].values())
                for way, what in (
                    ("as_they_come", "off_by"),
                    ("kept_within", "off_by"),
                    ("kept_within", "rounding_alone"),
                )
            ),
        )
    ]
    if r["perplexity_change"]:
        both = zip(
            *([of[way] for way in ("as_they_come", "kept_within")] for of in r["perplexity_change"].values()),
            strict=True,
        )
        rows.append(
            (
                f"perplexity of {', '.join(r['perplexity_change'])} trained on 300 M tokens, by the TFLite file over "
                f"that of float32: {ways}",
                "; ".join(", ".join(f"{100 * change:+.2f} %" for change in changes) for changes in both),
            )
        )
    return rows


SCRIPTS = {  # where the name is another
    "poster_train_20m": "poster_train.py",
    "proxy_stats": "proxy_study.py --stats bench/results/proxy_study.csv",
    "export_sizes_tflite": "export_sizes.py tflite",
    "shared_study": "shared_study.py --stats",
    "shape_study": "shape_study.py --stats",
    "constraints_quieter": "constraints.py",
    "constraints_free": "constraints.py --space free",
    "constraints_1_thread": "constraints.py --threads 1",
    "constraints_1_thread_free": "constraints.py --threads 1 --space free",
    "latency_local_1_thread": "latency_local.py --threads 1",
    "latency_local_free": "latency_local.py --space free",
    "latency_local_fastest": "latency_local.py",
    "latency_local_1_thread_fastest": "latency_local.py --threads 1",
}
TABLES: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "shared_study": shared_study,
    "proxy_stats": lambda r: [*proxy_stats(r), *proxy_paired(r)],
    "shape_study": shape_study,
    "proxy_lts": proxy_lts,
    "search_speed": search_speed,
    "evolution": evolution,
    "dynamic": dynamic,
    "together": together,
    "te_nas": te_nas,
    "presets": presets,
    "latency_hat": latency_hat,
    "placement": placement,
    "latency_local": latency_local,
    "latency_local_1_thread": latency_local,
    "latency_local_free": latency_local,
    "latency_local_fastest": latency_local,
    "latency_local_1_thread_fastest": latency_local,
    "constraints": constraints,
    "constraints_quieter": constraints,
    "constraints_free": constraints,
    "constraints_1_thread": constraints,
    "constraints_1_thread_free": constraints,
    "export_sizes": export_sizes,
    "prefill_chunks": prefill_chunks,
    "export_sizes_tflite": lambda r: export_sizes(r, " as TFLite"),
    "peers": peers,
    "quantization": quantization,
    "arm": arm,
    "faults": faults,
    "upload": upload,
    "ring": ring,
    "poster_train": lambda r: [*full_rows(r), *small_rows(r)],
    "poster_train_20m": twenty_million_rows,
    "space_study": space_rows,
    "skip_time": skip_rows,
    "cache_study": cache_rows,
    "variants": variants_rows,
    "distil": distil_rows,
    "row_exports": row_exports,
    "overflow": overflow,
    "poster": figure_rows,
    "demo_model": demo_model,
}


def table() -> str:
    """Return the table in Markdown, with where each row comes from."""
    lines = ["| what | figure | script, machine, date |", "| --- | ---: | --- |"]
    for name, rows in TABLES.items():
        path = HERE / "results" / f"{name}.json"
        if not path.exists():
            continue
        document = json.loads(path.read_text(encoding="utf-8"))
        machine = document["machine"]
        script = SCRIPTS.get(name, f"{name}.py")
        device = document["result"].get("device") or f"{machine['processor']}, {machine['cores']} cores"
        where = f"[`{script}`](bench/{script.split()[0]}), {device}, {document['date'][:10]}"
        lines += [f"| {what} | {figure} | {where} |" for what, figure in rows(document["result"])]
    return "\n".join(lines)


def main() -> int:
    """Write or check the README."""
    old = README.read_text(encoding="utf-8")
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    new = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
    if "--check" in sys.argv[1:]:
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
