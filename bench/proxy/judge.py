"""Every figure of the proxy study, from its table: which score orders the trained models best.

The formula's weights are fitted where they are not judged: on the low and the high budget for the tables
at the main one, and on random halves of the architectures for the held-out figures.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from proxy import ordering, table
from proxy.ordering import Array

from merino_edge.architecture import Architecture
from merino_edge.search.cost import total
from merino_edge.search.entropy import ScoreOptions, entropy_score
from merino_edge.search.space import load_space

Rows = list[dict[str, Any]]
Weights = tuple[float, float, float]  # beta, alpha_2, eps
BETAS = tuple(np.round(np.arange(0.0, 0.4601, 0.01), 4))  # gamma < 1 everywhere in the poster's space
WIDE_BETAS = tuple(np.round(np.arange(0.0, 1.0001, 0.01), 4))
GRID = tuple(itertools.product(BETAS[::2], (0.5, 1.0, 2.0, 4.0), (0.01, 1.0, 10.0, 100.0)))
SPLITS = 100
ONE_WIDTH = ("equal", "equal-large", "free")


def entropies(rows: Rows, eps: float) -> list[Array]:
    """The five sums of the formula for each row, from its architecture."""
    parts = entropy_score(ScoreOptions(eps=eps)).parts
    models = [Architecture.from_json(json.loads(row["architecture"])) for row in rows]
    return [np.array([float(total(part, model)) for model in models]) for part in parts]


class Entropy:
    """The formula over fixed rows, its sums computed once an eps."""

    def __init__(self, rows: Rows) -> None:
        """Keep the rows."""
        self.rows = rows
        self.sums: dict[float, list[Array]] = {}

    def __call__(self, weights: Weights) -> Array:
        """Score every row."""
        beta, alpha2, eps = weights
        if eps not in self.sums:
            self.sums[eps] = entropies(self.rows, eps)
        return entropy_score(ScoreOptions(beta=float(beta), alpha2=alpha2, eps=eps)).combine(*self.sums[eps])


def quality(rows: Rows) -> Array:
    """Minus the validation loss."""
    return -table.column(rows, "valid_loss")


def fit(grid: tuple[Weights, ...], groups: list[tuple[Entropy, Array]]) -> Weights:
    """Return the weights of the highest mean Spearman over groups of rows; the middle one of equals."""
    index, _ = ordering.best_on_grid(
        range(len(grid)),
        lambda i: float(np.mean([ordering.spearman(score(grid[int(i)]), q) for score, q in groups])),
    )
    return grid[int(index)]


def beta_grid(betas: tuple[float, ...]) -> tuple[Weights, ...]:
    """The formula with alpha_2 = 1 and eps = 0.01."""
    return tuple((float(b), 1.0, 0.01) for b in betas)


def judge(rows: Rows) -> dict[str, Any]:
    """Return all figures."""
    plain = [r for r in rows if r["lr_factor"] == 1 and r["init"] == study_init(rows)]
    first = [r for r in plain if r["seed"] == 0 and r["group"] in ONE_WIDTH]
    low, main, high = sorted({r["tokens"] for r in first})
    at_main = [r for r in first if r["tokens"] == main]
    others = [(Entropy(s), quality(s)) for s in ([r for r in first if r["tokens"] == t] for t in (low, high))]
    fitted = fit(beta_grid(BETAS), others)
    general = fit(GRID, others)
    equal = [r for r in at_main if r["group"] == "equal"]
    groups = {
        "all": at_main,
        "equal FLOPs": equal,
        "equal FLOPs, larger": [r for r in at_main if r["group"] == "equal-large"],
        "free": [r for r in at_main if r["group"] == "free"],
        "equal FLOPs, low budget": [r for r in first if r["tokens"] == low],
        "equal FLOPs, high budget": [r for r in first if r["tokens"] == high],
    }
    return {
        "recommended": recommend(at_main, equal, fitted, general),
        "budgets_tokens": {"low": low, "main": main, "high": high},
        "fitted_on_low_and_high": {
            "beta": fitted[0],
            "general": dict(zip(("beta", "alpha2", "eps"), general, strict=True)),
        },
        "groups": {name: _group(members, fitted, general) for name, members in groups.items()},
        "paired": {name: _against(groups[name], fitted) for name in ("all", "equal FLOPs")},
        "held_out": {name: held_out(groups[name]) for name in ("all", "equal FLOPs")},
        "unseen": _unseen(first, main, high, fitted, general),
        "beta_by_tokens": beta_by_tokens(first),
        "beta_by_scale": [_best_beta(groups[n], n) for n in ("equal FLOPs", "equal FLOPs, larger", "free")],
        "noise": noise(plain, at_main, equal),
        "order_between_budgets": _between(first, low, main, high),
        "loss_model": loss_model(at_main),
        "expected_loss": expected_loss(first),
        "width_steps": width_steps([r for r in plain if r["group"] == "steps"], at_main),
        "recipe_checks": recipe_checks(rows, at_main),
        "domain": domain(),
    }  # fmt: skip


def study_init(rows: Rows) -> str:
    """The initialisation of the study proper."""
    return str(next(r["init"] for r in rows if r["group"] == "free"))


def scores(rows: Rows, fitted: Weights, general: Weights) -> dict[str, Array]:
    """All scores of the rows by name."""
    formula = Entropy(rows)
    return {
        "entropy-poster": formula((1 / 16, 1.0, 0.01)),
        "entropy": formula(fitted),
        "entropy-general": formula(general),
        **{name: score(rows) for name, score in table.SIMPLE.items()},
        **table.network_scores(rows),
    }


def recommend(at_main: Rows, equal: Rows, fitted: Weights, general: Weights) -> dict[str, Any]:
    """Return the score of the best mean of overall and equal-FLOPs Spearman, and the rest in order."""
    found: dict[str, list[float]] = {}
    for rows in (at_main, equal):
        for name, score in scores(rows, fitted, general).items():
            found.setdefault(name, []).append(ordering.spearman(score, quality(rows)))
    ordered = sorted(found, key=lambda name: -sum(found[name]))
    return {
        "score": ordered[0],
        "beta_of_the_entropy": fitted[0],
        "mean_spearman": {name: round(sum(found[name]) / 2, 4) for name in ordered},
    }


def _group(rows: Rows, fitted: Weights, general: Weights) -> dict[str, Any]:
    size, good = table.column(rows, "total_parameters"), quality(rows)
    draws = ordering.resamples(len(rows))
    return {
        "n": len(rows),
        "tokens": rows[0]["tokens"],
        "flops": [min(r["flops"] for r in rows), max(r["flops"] for r in rows)],
        "scores": {
            name: ordering.summarise(score, good, size, draws) for name, score in scores(rows, fitted, general).items()
        },
    }


def _against(rows: Rows, fitted: Weights) -> dict[str, Any]:
    """Pair the fitted entropy, then the default, with every other score."""
    size, good = table.column(rows, "total_parameters"), quality(rows)
    draws = ordering.resamples(len(rows))
    champion = table.SIMPLE["balanced-parameters"](rows)
    entropy = Entropy(rows)(fitted)
    rivals = {**{n: s(rows) for n, s in table.SIMPLE.items()}, **table.network_scores(rows)}
    return {
        "entropy": {n: ordering.paired(entropy, rival, good, size, draws) for n, rival in rivals.items()},
        "balanced-parameters": {
            n: ordering.paired(champion, rival, good, size, draws)
            for n, rival in {**rivals, "entropy": entropy, "entropy-poster": Entropy(rows)((1 / 16, 1.0, 0.01))}.items()
            if n != "balanced-parameters"
        },
    }


def held_out(rows: Rows) -> dict[str, Any]:
    """Fit on one half of the architectures, test on the other, over random halves; mean and spread."""
    good, size = quality(rows), table.column(rows, "total_parameters")
    formula = Entropy(rows)
    narrow = np.array([formula(w) for w in beta_grid(BETAS)])
    wide = np.array([formula(w) for w in GRID])
    simple = {name: score(rows) for name, score in table.SIMPLE.items()}
    found: dict[str, list[tuple[float, float]]] = {}
    betas = []
    for split in range(SPLITS):
        order = np.random.default_rng(split).permutation(len(rows))
        half, rest = order[: len(rows) // 2], order[len(rows) // 2 :]
        first, second = (_best_row(candidates, good, half) for candidates in (narrow, wide))
        betas.append(BETAS[first])
        for name, score in {"entropy": narrow[first], "entropy-general": wide[second], **simple}.items():
            near = ordering.share_ordered(score[rest], good[rest], size[rest])
            found.setdefault(name, []).append((ordering.spearman(score[rest], good[rest]), near))
    result: dict[str, Any] = {
        "splits": SPLITS,
        "beta": {"median": float(np.median(betas)), "min": min(betas), "max": max(betas)},
    }
    for name, values in found.items():
        spearman, near = np.array(values).T
        ours = np.array(found["entropy"])[:, 0]
        result[name] = {
            "spearman": round(float(spearman.mean()), 4),
            "spread": [round(v, 4) for v in ordering.interval(spearman)],
            "in_10pct": round(float(np.nanmean(near)), 4),
            "entropy_won": round(float((ours > spearman).mean() + (ours == spearman).mean() / 2), 3),
        }
    return result


def _best_row(candidates: Array, good: Array, members: Any) -> int:
    """Number of the candidate score that orders the members best."""
    rho = ordering.spearman_rows(candidates[:, members], np.tile(good[members], (len(candidates), 1)))
    return int(rho.argmax())


def _unseen(first: Rows, main: int, high: int, fitted: Weights, general: Weights) -> dict[str, Any]:
    """Judge weights fitted at other budgets on architectures those budgets do not hold."""
    seen = {r["blocks"] for r in first if r["tokens"] == high}
    rows = [r for r in first if r["tokens"] == main and r["blocks"] not in seen]
    return _group(rows, fitted, general)


def _best_beta(rows: Rows, name: str) -> dict[str, Any]:
    """Best beta of some rows: inside the domain, unbounded, and its bootstrap interval."""
    good, formula = quality(rows), Entropy(rows)
    inside = np.array([formula(w) for w in beta_grid(BETAS)])
    outside = np.array([formula(w) for w in beta_grid(WIDE_BETAS)])

    def best(candidates: Array, betas: tuple[float, ...], members: Any) -> tuple[float, float]:
        rho = ordering.spearman_rows(candidates[:, members], np.tile(good[members], (len(betas), 1)))
        return ordering.best_on_grid(betas, lambda b: float(rho[betas.index(b)]))

    everyone = np.arange(len(rows))
    beta, rho = best(inside, BETAS, everyone)
    free, free_rho = best(outside, WIDE_BETAS, everyone)
    sampled = np.array([best(inside, BETAS, draw)[0] for draw in ordering.resamples(len(rows), 300)])
    return {
        "rows": name,
        "n": len(rows),
        "tokens": rows[0]["tokens"],
        "beta": beta,
        "interval": list(ordering.interval(sampled)),
        "spearman": round(rho, 4),
        "at_the_bound": bool(beta >= BETAS[-1] - 0.02),
        "unbounded_beta": free,
        "unbounded_spearman": round(free_rho, 4),
        "minus_depth_spearman": round(ordering.spearman(-table.column(rows, "depth"), good), 4),
        "tokens_per_parameter": round(rows[0]["tokens"] / float(np.median(table.column(rows, "total_parameters"))), 2),
    }


def beta_by_tokens(first: Rows) -> dict[str, Any]:
    """Best beta at each budget on the same architectures, and what the exponent of depth does in P / L^p."""
    budgets = sorted({r["tokens"] for r in first})
    shared = set.intersection(*({r["blocks"] for r in first if r["tokens"] == t} for t in budgets))
    members = {t: [r for r in first if r["tokens"] == t and r["blocks"] in shared] for t in budgets}
    powers = []
    widest = [r for r in first if r["tokens"] == budgets[1]]
    for tokens, rows in [*members.items(), ("all at the main budget", widest)]:
        size, depth, good = table.column(rows, "decoder_parameters"), table.column(rows, "depth"), quality(rows)
        score: Callable[[float], float] = lambda p, s=size, d=depth, q=good: ordering.spearman(s / d**p, q)  # type: ignore[misc]  # noqa: E731
        grid = tuple(np.round(np.arange(-1.0, 2.01, 0.1), 2))
        power, rho = ordering.best_on_grid(grid, score)
        powers.append({"tokens": tokens, "power": power, "spearman": round(rho, 4)})
    return {"rows": [_best_beta(members[t], "equal FLOPs") for t in budgets], "depth_power": powers}


def noise(plain: Rows, at_main: Rows, equal: Rows) -> dict[str, Any]:
    """What a second seed changes, and how high a perfect score could reach through that noise."""
    first = {r["blocks"]: r for r in at_main}
    pairs = [(first[r["blocks"]]["valid_loss"], r["valid_loss"]) for r in plain if r["seed"] == 1]
    difference = np.array([a - b for a, b in pairs])
    deviation = float(np.sqrt((difference**2).mean() / 2))
    ceilings = {}
    for name, rows in (("all", at_main), ("equal FLOPs", equal)):
        good, size = quality(rows), table.column(rows, "total_parameters")
        noisy = good + np.random.default_rng(0).normal(0, deviation, (400, len(rows)))
        ceilings[name] = {
            "spearman": round(float(np.mean([ordering.spearman(good, q) for q in noisy])), 4),
            "in_10pct": round(float(np.mean([ordering.share_ordered(good, q, size) for q in noisy])), 4),
            "loss_range_nats": round(float(good.max() - good.min()), 4),
        }
    return {
        "pairs": len(pairs),
        "deviation_of_one_training_nats": round(deviation, 5),
        "order_between_seeds_spearman": round(ordering.spearman(*np.array(pairs).T), 4),
        "ceiling_of_a_perfect_score": ceilings,
    }


def _between(first: Rows, *budgets: int) -> dict[str, float]:
    """Spearman between the losses of the same architectures at two budgets."""
    loss = {t: {r["blocks"]: r["valid_loss"] for r in first if r["tokens"] == t} for t in budgets}
    result = {}
    for a, b in itertools.combinations(budgets, 2):
        both = sorted(loss[a].keys() & loss[b].keys())
        pair = (np.array([loss[t][m] for m in both]) for t in (a, b))
        result[f"{a / 1e6:.0f}M-{b / 1e6:.0f}M"] = round(ordering.spearman(*pair), 4)
    return result


def loss_model(rows: Rows) -> dict[str, Any]:
    """Fit loss = a + b ln(unique decoder parameters) + c ln(depth); error by leaving one out."""
    design, loss = _design(rows), -quality(rows)
    coefficients = np.linalg.lstsq(design, loss, rcond=None)[0]
    hat = design @ np.linalg.pinv(design)
    residual = (loss - design @ coefficients) / (1 - np.diag(hat))
    return {
        "intercept": round(float(coefficients[0]), 5),
        "ln_decoder_parameters": round(float(coefficients[1]), 5),
        "ln_depth": round(float(coefficients[2]), 5),
        "left_out_rmse_nats": round(float(np.sqrt((residual**2).mean())), 5),
        "interval_90pct_nats": round(float(np.quantile(np.abs(residual), 0.9)), 5),
        "spearman_left_out": round(ordering.spearman(loss, loss - residual), 4),
    }


def expected_loss(rows: Rows) -> dict[str, Any]:
    """Fit the loss at all budgets: the model above with ln(tokens) and its square; what `search` prints."""
    tokens = np.log(table.column(rows, "tokens"))
    design, loss = np.column_stack([_design(rows), tokens, tokens**2]), -quality(rows)
    coefficients = np.linalg.lstsq(design, loss, rcond=None)[0]
    residual = (loss - design @ coefficients) / (1 - np.diag(design @ np.linalg.pinv(design)))
    names = ("intercept", "ln_decoder_parameters", "ln_depth", "ln_tokens", "ln_tokens_squared")
    return {
        "n": len(rows),
        **{name: round(float(c), 6) for name, c in zip(names, coefficients, strict=True)},
        "left_out_rmse_nats": round(float(np.sqrt((residual**2).mean())), 5),
        "interval_90pct_nats": round(float(np.quantile(np.abs(residual), 0.9)), 5),
        "tokens": [min(r["tokens"] for r in rows), max(r["tokens"] for r in rows)],
        "decoder_parameters": [min(r["decoder_parameters"] for r in rows), max(r["decoder_parameters"] for r in rows)],
        "depth": [min(r["depth"] for r in rows), max(r["depth"] for r in rows)],
    }


def _design(rows: Rows) -> Array:
    size, depth = table.column(rows, "decoder_parameters"), table.column(rows, "depth")
    return np.stack([np.ones(len(rows)), np.log(size), np.log(depth)], axis=1)


def width_steps(stepped: Rows, at_main: Rows) -> list[dict[str, Any]]:
    """Loss of models whose width changes, beside what one-width models of their size and depth reach."""
    model = loss_model(at_main)
    coefficients = np.array([model["intercept"], model["ln_decoder_parameters"], model["ln_depth"]])
    expected = _design(stepped) @ coefficients if stepped else np.zeros(0)
    return [
        {"blocks": r["blocks"], "loss": r["valid_loss"], "excess_nats": round(r["valid_loss"] - float(e), 4)}
        for r, e in zip(stepped, expected, strict=True)
    ]


def recipe_checks(rows: Rows, at_main: Rows) -> dict[str, Any]:
    """What half and twice the learning rate and the package's initialisation change, in nats."""
    first = {r["blocks"]: r for r in at_main}

    def change(members: Rows) -> dict[str, Any]:
        own, theirs = (
            np.array(v)
            for v in zip(*((first[r["blocks"]]["valid_loss"], r["valid_loss"]) for r in members), strict=True)
        )
        return {
            "n": len(members),
            "mean_change_nats": round(float((theirs - own).mean()), 4),
            "by_depth": {
                f"{r['blocks']}": round(float(t - o), 4) for r, o, t in zip(members, own, theirs, strict=True)
            },
            "order_kept_spearman": round(ordering.spearman(own, theirs), 4),
        }

    checks = {f"learning rate x {f}": [r for r in rows if r["lr_factor"] == f] for f in (0.5, 2.0)}
    checks["initialisation of the package"] = [r for r in rows if r["init"] == "model"]
    return {name: change(members) for name, members in checks.items() if members}


def domain() -> dict[str, Any]:
    """Largest beta with gamma < 1 in the whole poster space, and the share outside at larger ones."""
    space = load_space("poster")
    shallow, deep = (sum(pick(b.depths) for b in space.blocks) for pick in (min, max))
    ways = np.ones(1)
    for block in space.blocks:
        options = np.zeros(max(block.depths) + 1)
        for depth in block.depths:
            options[depth] += len(block.ffn_ratios)
        ways = np.convolve(ways, options)
    widths = np.array(space.widths)
    depths = np.arange(len(ways))
    share = {
        str(beta): round(
            float((ways * (beta * depths >= np.log(widths)[:, None])).sum() / (ways.sum() * len(widths))), 4
        )
        for beta in (0.45, 0.5, 0.6)
    }
    bound = float(np.log(widths.min()) / deep)
    return {"depths": [shallow, deep], "largest_beta": round(bound, 4), "share_outside": share}
