"""Training-free scores that need a network: drawn at random, looked at once, never trained.

    synflow         Tanaka et al. 2020 (arXiv 2006.05467)
    grad-norm       Abdelfattah et al. 2021 (arXiv 2101.08134)
    snip            Lee et al. 2019 (arXiv 1810.02340)
    ntk-condition   condition number of the neural tangent kernel, of TE-NAS (Chen et al. 2021, arXiv 2102.11535)
    linear-regions  the other half of TE-NAS, counted along a line (Hanin and Rolnick 2019, arXiv 1901.09021)
    w-pca           Wang et al. 2025 (arXiv 2504.15983)

All were made for networks without shared weights, most of them for convolutions; each function says how
it is adapted to block-shared decoders. Tokens are drawn uniformly, no text is needed. The token table is
cut to 1,024 rows: no score counts its weights, and drawing it would take most of the time. None of them
is a sum over blocks, so no search by them is exact. They are found by the entry-point group
`merino_edge.scores`; larger is better in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from merino_edge.architecture import Architecture
from merino_edge.training.model import MerinoBlock, MerinoConfig, MerinoForCausalLM, next_token_loss

SEQUENCES = 8
TOKENS = 32  # of each, where there is a backward pass
STATE_TOKENS = 64  # of each, for w-pca
POINTS, LINE_TOKENS = 64, 8  # of the line that linear regions are counted along
TABLE_ROWS = 1024
EXPLAINED = 0.99  # share of the variance that w-pca's components must hold


@dataclass(frozen=True)
class NetworkScore:
    """A score of one architecture by a random network of its shape.

    Attributes:
        name: As `--score` takes it.
        cost: What one candidate costs, in words.
    """

    name: str
    cost: str

    def __call__(self, architecture: Architecture) -> float:
        """Return the score; the same architecture is drawn and looked at once."""
        return network_score(self.name, architecture)


def make(name: str, options: object) -> NetworkScore:
    """Return the score of a name: what the entry points of `merino_edge.scores` call with their options."""
    return NetworkScore(name, COSTS[name])


@lru_cache(maxsize=16_384)
def network_score(name: str, architecture: Architecture, seed: int = 0) -> float:
    """Return a score of one architecture.

    Args:
        name: See `COSTS`.
        architecture: What to draw.
        seed: Of weights and tokens.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cut = replace(architecture, vocab_size=min(architecture.vocab_size, TABLE_ROWS))
        model = MerinoForCausalLM(MerinoConfig(architecture=cut.to_json()))
        model.train(False)
        return _FUNCTIONS[name](model, architecture)


def _draw(model: MerinoForCausalLM, tokens: int) -> Tensor:
    """Draw `(SEQUENCES, tokens)` token ids."""
    return torch.randint(model.config.merino.vocab_size, (SEQUENCES, tokens))


def _blocks(model: MerinoForCausalLM) -> list[MerinoBlock]:
    """Return the blocks, in the order of execution."""
    return [block for block in model.blocks if isinstance(block, MerinoBlock)]


def _matrices(model: MerinoForCausalLM) -> list[nn.Parameter]:
    """Every matrix but the token table, each shared one once."""
    return [p for p in model.parameters() if p.ndim == 2 and p is not model.embedding.weight]


def _synflow(model: MerinoForCausalLM, architecture: Architecture) -> float:
    """Logarithm of the sum of weight times gradient of a network of absolute weights, fed with ones.

    The network is made linear, as the score demands: no norms, GELU the identity on what is positive.
    Attention averages equal positions, so only values and outputs carry flow; queries and keys have none.
    A matrix gets the flow of all its uses. The stream is scaled at every layer and the scale kept apart.
    """
    matrices = _matrices(model)
    with torch.no_grad():
        for p in matrices:
            p.abs_()
    x, scale = torch.ones(1, model.embedding.embedding_dim), 0.0  # (1, E)
    for block in _blocks(model):
        x = x if block.projection is None else block.projection(x)
        for _ in range(block.depth):
            x = x + block.output(block.value(x))
            x = x + block.ffn_out(block.ffn_in(x))
            size = float(x.detach().mean())
            x, scale = x / size, scale + math.log(size)
    x = x if model.output_projection is None else model.output_projection(x)
    gradients = torch.autograd.grad(x.sum(), matrices, allow_unused=True)
    flow = sum(float((p.detach() * g).sum()) for p, g in zip(matrices, gradients, strict=True) if g is not None)
    return math.log(flow) + scale


def _gradients(model: MerinoForCausalLM) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each matrix with its gradient of the next-token loss on drawn tokens."""
    ids = _draw(model, TOKENS)
    matrices = _matrices(model)
    loss = next_token_loss(model(ids).logits, ids)
    yield from zip((p.detach() for p in matrices), torch.autograd.grad(loss, matrices), strict=True)


def _grad_norm(model: MerinoForCausalLM, architecture: Architecture) -> float:
    """Sum over matrices of the Euclidean norm of the loss's gradient; a shared one has the gradient of all its uses."""
    return sum(float(gradient.norm()) for _, gradient in _gradients(model))


def _snip(model: MerinoForCausalLM, architecture: Architecture) -> float:
    """Sum over weights of the absolute value of weight times the loss's gradient."""
    return sum(float((weight * gradient).abs().sum()) for weight, gradient in _gradients(model))


@contextmanager
def _watched(
    modules: Sequence[nn.Module], hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]
) -> Iterator[None]:
    """Call `hook(module, inputs, output)` at every execution of some modules."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ntk_condition(model: MerinoForCausalLM, architecture: Architecture) -> float:
    """Minus the logarithm of the condition number of the kernel of `SEQUENCES` sequences.

    As in TE-NAS the kernel is `J J^T`, a row of J being the gradient of the sum of one sample's logits;
    a sample is a sequence and its logits are those after the last token. Sequences do not meet in the
    network, so one backward pass serves all: each matrix's gradient by sequence is put together from what
    went in and what came back at each of its uses.
    """
    uses: dict[nn.Module, list[list[Tensor]]] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        use = [inputs[0].detach()]  # (B, T, in), then (B, T, out) of the gradient
        uses.setdefault(module, []).append(use)
        output.register_hook(use.append)  # type: ignore[no-untyped-call]

    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with _watched(linears, record):
        logits = model(_draw(model, TOKENS)).logits[:, -1]
    logits.sum().backward()
    kernel = torch.zeros(SEQUENCES, SEQUENCES, dtype=torch.float64)
    for executions in uses.values():
        inputs, outputs = (torch.cat(parts, dim=1) for parts in zip(*executions, strict=True))  # (B, uses * T, ...)
        rows = torch.bmm(outputs.transpose(1, 2), inputs).flatten(1)  # (B, out * in)
        kernel += (rows @ rows.T).double()
    values = torch.linalg.eigvalsh(kernel)
    return -math.log(float(values[-1] / values[0].clamp(min=1e-12 * values[-1])))


@torch.no_grad()
def _linear_regions(model: MerinoForCausalLM, architecture: Architecture) -> float:
    """Linear regions that a line between two random inputs crosses.

    TE-NAS counts the activation patterns of random inputs to a tiny ReLU network. In a decoder every input
    has a pattern of its own, so that count would be constant; instead each change of a unit's sign from one
    of `POINTS` points of a line to the next begins a region. A unit is one of the FFN's inner units, in each
    executed layer, after the last token; GELU's bend at 0 stands for ReLU's.
    """
    changes = 0

    def line(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        where = torch.linspace(0, 1, POINTS)[:, None, None]
        return output[:1] * (1 - where) + output[1:2] * where  # (POINTS, T, E)

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal changes
        on = output[:, -1] > 0  # (POINTS, F)
        changes += int((on[1:] != on[:-1]).sum())

    handle = model.embedding.register_forward_hook(line)
    with _watched([block.ffn_in for block in _blocks(model)], count):
        model(_draw(model, LINE_TOKENS)[:2])
    handle.remove()
    return 1.0 + changes


@torch.no_grad()
def _w_pca(model: MerinoForCausalLM, architecture: Architecture) -> float:
    """Unique parameters times principal components of the FFN's inner states that hold 99 % of their variance.

    Components are counted in each executed layer, over all drawn tokens, and added up.
    """
    components = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal components
        states = inputs[0].flatten(0, 1)  # (B * T, F)
        states = states - states.mean(0)
        square = states @ states.T if len(states) < states.shape[1] else states.T @ states
        variances = torch.linalg.eigvalsh(square).flip(0).clamp(min=0)
        components += int((variances.cumsum(0) < EXPLAINED * variances.sum()).sum()) + 1

    with _watched([block.ffn_out for block in _blocks(model)], count):
        model(_draw(model, STATE_TOKENS))
    return float(architecture.unique_parameters * components)


_FUNCTIONS: dict[str, Callable[[MerinoForCausalLM, Architecture], float]] = {
    "synflow": _synflow,
    "grad-norm": _grad_norm,
    "snip": _snip,
    "ntk-condition": _ntk_condition,
    "linear-regions": _linear_regions,
    "w-pca": _w_pca,
}
_PASSES = f"one forward and one backward pass of {SEQUENCES * TOKENS} tokens"
COSTS = {
    "synflow": "drawing a network, one forward and one backward pass of one position",
    "grad-norm": f"drawing a network, {_PASSES}",
    "snip": f"drawing a network, {_PASSES}",
    "ntk-condition": f"drawing a network, {_PASSES}, and the gradients of {SEQUENCES} sequences",
    "linear-regions": f"drawing a network, one forward pass of {POINTS * LINE_TOKENS} tokens",
    "w-pca": f"drawing a network, one forward pass of {SEQUENCES * STATE_TOKENS} tokens, an eigenvalue problem a layer",
}

synflow, grad_norm, snip, ntk_condition, linear_regions, w_pca = (partial(make, name) for name in _FUNCTIONS)
