"""Scores that need a network: against a slower way of saying the same, and as the search uses them."""

from __future__ import annotations

import math
from importlib.metadata import entry_points

import pytest

torch = pytest.importorskip("torch")

from merino_edge.architecture import Architecture, Block  # noqa: E402
from merino_edge.training import scores  # noqa: E402
from merino_edge.training.model import MerinoConfig, MerinoForCausalLM, next_token_loss  # noqa: E402

SHARED = Architecture((Block(32, 2, 3), Block(64, 1, 1)), embedding_width=48, vocab_size=40, head_dim=16)


def model(seed: int) -> MerinoForCausalLM:
    torch.manual_seed(seed)
    return MerinoForCausalLM(MerinoConfig(architecture=SHARED.to_json())).eval()


def matrices(network: MerinoForCausalLM) -> list[torch.nn.Parameter]:
    return [p for p in network.parameters() if p.ndim == 2 and p is not network.embedding.weight]


def test_every_score_is_registered_under_its_name_and_states_its_cost() -> None:
    points = {point.name: point for point in entry_points(group="merino_edge.scores")}
    assert set(scores.COSTS) <= set(points)
    for name, cost in scores.COSTS.items():
        made = points[name].load()(None)
        assert (made.name, made.cost) == (name, cost)


@pytest.mark.parametrize("name", scores.COSTS)
def test_a_score_depends_on_architecture_and_seed_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    first = scores.network_score(name, SHARED, seed=3)
    scores.network_score.cache_clear()
    torch.manual_seed(99)
    assert scores.network_score(name, SHARED, seed=3) == first != scores.network_score(name, SHARED, seed=4)
    assert math.isfinite(first)
    torch.random.set_rng_state(state)


@pytest.mark.parametrize("name", scores.COSTS)
def test_a_score_leaves_torchs_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    scores.network_score(name, SHARED, seed=11)
    assert torch.rand(1) == expected


def test_the_kernel_of_one_backward_pass_is_that_of_one_pass_a_sequence() -> None:
    network = model(0)
    ids = torch.randint(40, (scores.SEQUENCES, scores.TOKENS))
    rows = []
    for sequence in ids:
        loss = network(sequence[None]).logits[0, -1].sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, matrices(network))]))
    jacobian = torch.stack(rows).double()
    values = torch.linalg.eigvalsh(jacobian @ jacobian.T)
    expected = -math.log(float(values[-1] / values[0]))
    assert scores.network_score("ntk-condition", SHARED, seed=0) == pytest.approx(expected, rel=1e-3)


def test_synflow_is_weight_times_gradient_of_the_linear_network_of_absolute_weights() -> None:
    weights = [p.detach().abs().requires_grad_() for p in matrices(model(0))]
    named = dict(
        zip((n for n, p in model(0).named_parameters() if p.ndim == 2 and "embedding" not in n), weights, strict=True)
    )
    x = torch.ones(48)
    for i, block in enumerate(SHARED.blocks):
        w = {n.split(".")[2]: p for n, p in named.items() if n.startswith(f"blocks.{i}.")}
        x = w["projection"] @ x
        for _ in range(block.depth):
            x = x + w["output"] @ (w["value"] @ x)
            x = x + w["ffn_out"] @ (w["ffn_in"] @ x)
    gradients = torch.autograd.grad((named["output_projection.weight"] @ x).sum(), weights, allow_unused=True)
    flow = sum(float((p.detach() * g).sum()) for p, g in zip(weights, gradients, strict=True) if g is not None)
    assert scores.network_score("synflow", SHARED, seed=0) == pytest.approx(math.log(flow), rel=1e-5)


def test_gradient_scores_follow_from_the_gradient_of_the_loss() -> None:
    network = model(2)
    ids = torch.randint(40, (scores.SEQUENCES, scores.TOKENS))
    gradients = torch.autograd.grad(next_token_loss(network(ids).logits, ids), matrices(network))
    pairs = list(zip(matrices(network), gradients, strict=True))
    assert scores.network_score("grad-norm", SHARED, seed=2) == pytest.approx(sum(float(g.norm()) for _, g in pairs))
    expected = sum(float((p * g).abs().sum()) for p, g in pairs)
    assert scores.network_score("snip", SHARED, seed=2) == pytest.approx(expected)


def test_deeper_networks_cut_a_line_into_more_regions() -> None:
    deep = Architecture((Block(64, 2, 6),), 64, 40, head_dim=16)
    shallow = Architecture((Block(64, 2, 1),), 64, 40, head_dim=16)
    assert scores.network_score("linear-regions", deep) > 2 * scores.network_score("linear-regions", shallow)


def test_w_pca_counts_no_more_components_than_units() -> None:
    value = scores.network_score("w-pca", SHARED) / SHARED.unique_parameters
    assert value == int(value)
    assert 4 <= value <= 3 * 64 + 64
