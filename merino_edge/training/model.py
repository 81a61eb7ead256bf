"""The model in torch, whole, in one file: `MerinoConfig` and `MerinoForCausalLM`.

The same mathematics as `reference.py`, line by line, as Hugging Face classes: `generate()`, `Trainer`,
`save_pretrained` and, once this module is imported, `AutoModelForCausalLM.from_pretrained(folder)`
work. Parameters carry the names of `Architecture.tensor_shapes`, each shared matrix once; the output
head *is* the embedding table. Shapes: B sequences, T new tokens, P positions (cache and new), E width,
H heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from merino_edge.architecture import NORM_EPSILON, ROPE_THETA, Architecture

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (B or 1, 1, T, D/2) each


class MerinoConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """`config.json` of a checkpoint.

    Attributes:
        architecture: The JSON object of an `Architecture`.
        trained_tokens: Tokens the weights have seen.
        max_position_embeddings: Context length of training.
    """

    model_type = "merino"

    architecture: dict[str, Any] | None = None
    trained_tokens: int = 0
    max_position_embeddings: int = 1024
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Derive the numbers that Hugging Face code looks for; they never contradict the architecture."""
        if self.architecture is not None:
            architecture = self.merino
            kwargs["vocab_size"] = architecture.vocab_size
            kwargs["hidden_size"] = architecture.embedding_width
            kwargs["num_hidden_layers"] = architecture.depth
            kwargs["num_attention_heads"] = architecture.heads(0)
            kwargs["head_dim"] = architecture.head_dim
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def merino(self) -> Architecture:
        """The architecture, parsed and checked."""
        return Architecture.from_json(self.architecture, "config.json")


class ResidualLinear(nn.Linear):
    """A linear layer whose output is added to the residual stream: initialised smaller with depth."""


class MerinoNorm(nn.Module):
    """The last RMSNorm (Zhang and Sennrich 2019)."""

    def __init__(self, width: int) -> None:
        """Begin with gains 1."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return x / rms(x) * gain over the last axis."""
        return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPSILON)


def rotation(positions: Tensor, head_dim: int, dtype: torch.dtype) -> Rotation:
    """Cosines and sines of rotary positions (Su et al. 2021), in float64 where the device has it.

    Args:
        positions: `(B or 1, T)`.
        head_dim: D.
        dtype: Of the result.
    """
    precise = torch.float32 if positions.device.type == "mps" else torch.float64
    half = head_dim // 2
    frequency = ROPE_THETA ** (-torch.arange(half, dtype=precise, device=positions.device) / half)
    angle = positions[:, None, :, None].to(precise) * frequency  # (B, 1, T, D/2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn each head of `(B, H, T, D)` by its position, first half with second half."""
    cos, sin = by
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, written_out: bool) -> Tensor:
    """Causal softmax attention.

    Args:
        q: `(B, H, T, D)`.
        k: `(B, H, P, D)`.
        v: `(B, H, P, D)`.
        bias: `(B or 1, 1, T, P)`, 0 where a token may look and hugely negative where not; None for
            the plain causal triangle with T = P.
        written_out: Two matrix products and a softmax instead of the fused kernel.

    Returns:
        `(B, T, H * D)`.
    """
    if written_out:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, T, P)
        bias = causal_bias(q.shape[2], k.shape[2], None, q) if bias is None else bias
        mixed = torch.softmax(scores + bias, dim=-1) @ v  # (B, H, T, D)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)
    return mixed.transpose(1, 2).flatten(2)


def causal_bias(tokens: int, positions: int, attention_mask: Tensor | None, like: Tensor) -> Tensor:
    """Return the `(B or 1, 1, T, P)` mask to add to the scores, of the dtype and device of `like`.

    Args:
        tokens: T.
        positions: P.
        attention_mask: `(B, P)`, 0 for padding; None where there is none.
        like: Any tensor of the right dtype and device.
    """
    index = torch.arange(positions, device=like.device)
    allowed = (index[None, :] <= index[positions - tokens :, None])[None, None]  # (1, 1, T, P)
    if attention_mask is not None:
        allowed = allowed & attention_mask[:, None, None, :].bool()
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~allowed, torch.finfo(like.dtype).min
    )


class MerinoBlock(nn.Module):
    """`depth` layers that call one set of matrices (arXiv 2403.07921, block-wise parameter sharing)."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    def __init__(self, config: MerinoConfig, number: int) -> None:
        """Make block `number` of the architecture."""
        super().__init__()
        architecture = config.merino
        self.config = config
        block, width_in = architecture.blocks[number], architecture.input_width(number)
        width, ffn = block.width, block.ffn_width
        self.depth = block.depth
        self.heads = architecture.heads(number)
        self.projection = nn.Linear(width_in, width, bias=False) if width_in != width else None
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = ResidualLinear(width, width, bias=False)
        self.ffn_in = nn.Linear(width, ffn, bias=False)
        self.ffn_out = ResidualLinear(ffn, width, bias=False)
        self.norms = nn.Parameter(torch.ones(block.depth if architecture.per_layer_norms else 1, 2, width))
        self.skip_gains = nn.Parameter(torch.zeros(block.depth, 1, width)) if architecture.embedding_skip else None

    def enter(self, x: Tensor) -> Tensor:
        """Bring what enters to the width of the block."""
        return x if self.projection is None else self.projection(x)

    def forward(
        self,
        x: Tensor,
        skipped: Tensor | None,
        by: Rotation,
        bias: Tensor | None,
        cache: Cache | None,
        first_layer: int,
    ) -> Tensor:
        """Run all layers of the block.

        Args:
            x: `(B, T, E)` of the block before, or the embedding, of the block's width.
            skipped: `(B, T, E)` the normed embedding, for an embedding skip.
            by: See `rotation`.
            bias: See `attend`.
            cache: Extended in place, one entry for each *executed* layer.
            first_layer: Executed layers before this block.
        """
        for layer in range(self.depth):
            skip: tuple[Tensor, Tensor] | None = None
            if self.skip_gains is not None and skipped is not None:
                skip = (self.skip_gains[layer], skipped)  # (1, E) and (B, T, E)
            gains = self.norms[layer if len(self.norms) > 1 else 0]  # (2, E)
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(self.layer, x, gains, by, bias, None, 0, skip)
            else:
                x = self.layer(x, gains, by, bias, cache, first_layer + layer, skip)
        return x

    def layer(
        self,
        x: Tensor,
        gains: Tensor,
        by: Rotation,
        bias: Tensor | None,
        cache: Cache | None,
        number: int,
        skip: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """One pre-norm layer: attention, then the feed-forward network; `(B, T, E)` to `(B, T, E)`."""
        if skip is not None:
            x = x + skip[0] * skip[1]
        h = F.rms_norm(x, gains[0].shape, gains[0], NORM_EPSILON)
        q, k, v = (
            matrix(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
            for matrix in (self.query, self.key, self.value)
        )
        q, k = rotate(q, by), rotate(k, by)
        if cache is not None:
            k, v = cache.update(k, v, number)  # (B, H, P, D)
        x = x + self.output(attend(q, k, v, bias, self.config._attn_implementation == "eager"))
        h = F.rms_norm(x, gains[1].shape, gains[1], NORM_EPSILON)
        x = x + self.ffn_out(F.gelu(self.ffn_in(h)))
        return x


class MerinoForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """The block-shared decoder with its tied head."""

    config: MerinoConfig
    config_class = MerinoConfig
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # windows are of one length: the mean over micro-batches is the mean
    _no_split_modules = ["MerinoBlock"]  # noqa: RUF012  the base class declares it so

    def __init__(self, config: MerinoConfig) -> None:
        """Make the model of `config.architecture`, initialised by torch's current seed."""
        super().__init__(config)
        a = config.merino
        self.head_dim = a.head_dim
        self.first_layers = [sum(block.depth for block in a.blocks[:i]) for i in range(len(a.blocks))]
        self.embedding = nn.Embedding(a.vocab_size, a.embedding_width)
        self.blocks = nn.ModuleList(MerinoBlock(config, i) for i in range(len(a.blocks)))
        last = a.blocks[-1].width
        self.final_norm = MerinoNorm(last)
        self.output_projection = nn.Linear(last, a.embedding_width, bias=False) if last != a.embedding_width else None
        self.head_loss: Callable[..., Tensor] = head_loss
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Keep every layer's output near variance 1, and the residual stream's growth near 1 in all.

        N(0, 1 / fan_in) for matrices; what is added to the residual stream is divided by
        sqrt(2 * executed depth) (Radford et al. 2019). The table has N(0, 1 / E), so that logits begin
        near variance 1; gains of norms are 1, those of an embedding skip 0.
        """
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.Linear):
            residual = (2 * self.config.merino.depth) ** -0.5 if isinstance(module, ResidualLinear) else 1.0
            init.normal_(module.weight, std=module.in_features**-0.5 * residual)
        elif isinstance(module, MerinoNorm):
            init.ones_(module.weight)
        elif isinstance(module, MerinoBlock):
            init.ones_(module.norms)
            if module.skip_gains is not None:
                init.zeros_(module.skip_gains)

    def compile_parts(self) -> None:
        """Compile a layer, and the loss, instead of the whole: layers of one shape are compiled once.

        The steps are as fast and begin sooner; `plain_parts` undoes it. Pointwise kernels have one
        configuration instead of the fastest of several, which would all be compiled first.
        """
        options: dict[str, Any] = {"triton.autotune_pointwise": False}
        layer: Any = torch.compile(MerinoBlock.layer, dynamic=False, options=options)
        for block in self.blocks:
            block.layer = partial(layer, block)  # type: ignore[assignment]
        self.head_loss = torch.compile(head_loss, dynamic=False, options=options)

    def plain_parts(self) -> None:
        """Compute as written from now on."""
        for block in self.blocks:
            block.__dict__.pop("layer", None)
        self.head_loss = head_loss

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token table, which is the head too."""
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        loss_only: bool = False,
        teacher: tuple[Tensor, float] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss where labels are given.

        Args:
            input_ids: `(B, T)` the new tokens.
            attention_mask: `(B, P)`, 0 for padding. Without one nothing is padding.
            position_ids: `(B, T)`; by default they follow from the cache.
            past_key_values: Keys and values of the tokens before.
            labels: `(B, T)` as `input_ids`; each position is asked for the *next* label, -100 for none.
            use_cache: Return a cache for the next call.
            logits_to_keep: Only the last so many positions, or these positions; 0 for all.
            loss_only: Give the loss alone; on a GPU the logits are then never written in float32.
            teacher: Logits `(B, T, V)` of a teacher and its share, for the loss alone: see `distillation_loss`.
            kwargs: What `generate` adds (`return_dict`, ...); nothing of it changes the result.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        tokens = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + tokens, device=input_ids.device)[None]
        x = self.embedding(input_ids)  # (B, T, E)
        by = rotation(position_ids, self.head_dim, x.dtype)
        plain = attention_mask is None and past == 0
        bias = None if plain else causal_bias(tokens, past + tokens, attention_mask, x)
        skipped: Tensor | None = None
        for block, first_layer in zip(cast("list[MerinoBlock]", self.blocks), self.first_layers, strict=True):
            x = block.enter(x)
            if skipped is None and block.skip_gains is not None:
                skipped = F.rms_norm(x, x.shape[-1:], None, NORM_EPSILON)
            x = block(x, skipped, by, bias, past_key_values, first_layer)
        if isinstance(logits_to_keep, Tensor):
            x = x[:, logits_to_keep]
        elif logits_to_keep:
            x = x[:, -logits_to_keep:]
        x = self.final_norm(x)
        if self.output_projection is not None:
            x = self.output_projection(x)
        if loss_only and labels is not None:
            return CausalLMOutputWithPast(loss=self.head_loss(x, self.embedding.weight, labels, teacher))
        logits = F.linear(x, self.embedding.weight)  # (B, N, V)
        loss = None
        if labels is not None:
            loss = next_token_loss(logits, labels)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of position t's logits with label t + 1, in nats.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, -100 where nothing is asked.
    """
    target = F.pad(labels, (0, 1), value=-100)[:, 1:]  # (B, T)
    return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())


def distillation_loss(logits: Tensor, labels: Tensor, teacher_logits: Tensor, share: float) -> Tensor:
    """Mean over positions of (1 - share) cross entropy to the text + share cross entropy to the teacher, in nats.

    Hinton et al. 2015 (arXiv 1503.02531) at temperature 1.

    Args:
        logits: `(B, T, V)`.
        labels: `(B, T)`, -100 where nothing is asked: neither of the text nor of the teacher.
        teacher_logits: `(B, T, V)`, of the same tokens.
        share: 0 to 1.
    """
    target = labels[:, 1:]  # (B, T - 1)
    asked = target >= 0
    logs = F.log_softmax(logits[:, :-1].float(), dim=-1)  # (B, T - 1, V)
    to_text = -logs.gather(-1, target.clamp(min=0)[..., None])[..., 0]
    to_teacher = -(logs * F.softmax(teacher_logits[:, :-1].float(), dim=-1)).sum(-1)
    return (((1 - share) * to_text + share * to_teacher) * asked).sum() / asked.sum()


def head_loss(x: Tensor, table: Tensor, labels: Tensor, teacher: tuple[Tensor, float] | None = None) -> Tensor:
    """`next_token_loss`, or `distillation_loss`, of the logits of `x`, with the table padded to tiles of a GPU.

    A product with 50,257 rows runs at a fraction of the speed of one with 50,304; the rows added are
    masked, so the loss is the same.

    Args:
        x: `(B, T, E)`.
        table: `(V, E)`.
        labels: `(B, T)`.
        teacher: Its logits `(B, T, V)` and its share.
    """
    spare = -len(table) % 64 if x.is_cuda else 0
    if teacher is not None:
        logits = F.linear(x, F.pad(table, (0, 0, 0, spare)))[..., : len(table)]
        return distillation_loss(logits, labels, *teacher)
    return padded_head_loss(x, table, labels, spare) if spare else next_token_loss(F.linear(x, table), labels)


def padded_head_loss(x: Tensor, table: Tensor, labels: Tensor, spare: int) -> Tensor:
    """See `head_loss`; `spare` rows are added to the table, and masked."""
    logits = F.linear(x, F.pad(table, (0, 0, 0, spare)))  # (B, T, V + spare)
    real = torch.arange(logits.shape[-1], device=x.device) < len(table)
    return next_token_loss(torch.where(real, logits.float(), -torch.inf), labels)


AutoConfig.register("merino", MerinoConfig, exist_ok=True)
AutoModelForCausalLM.register(MerinoConfig, MerinoForCausalLM, exist_ok=True)
