"""What other tools want beside an unrolled graph: configurations of the model and of its tokenizer.

    config.json              transformers, optimum, transformers.js: which cache shapes to expect
    generation_config.json   the same: where generation ends
    genai_config.json        onnxruntime-genai
    tokenizer_config.json, special_tokens_map.json

`config.json` calls the model a `llama`, the model type whose inputs and cache these tools expect of a
decoder with rotary positions; the graph itself is the model, nothing of llama's is computed. Its one
number of heads is the first layer's. onnxruntime-genai and transformers.js 4 take each layer's own
from the graph, so that they load models of several widths; optimum does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from merino_edge.architecture import NORM_EPSILON, ROPE_THETA, Architecture
from merino_edge.errors import InvalidFileError
from merino_edge.files import write_atomic

END_OF_TEXT = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")  # names a tokenizer may give it
SIDE_FILES = (
    "config.json", "generation_config.json", "genai_config.json", "special_tokens_map.json", "tokenizer_config.json",
)  # fmt: skip
SEVERAL_WIDTHS = (
    "blocks of several widths: onnxruntime-genai and transformers.js 4 load this folder; optimum and earlier "
    "transformers.js cannot, for they know one number of heads for all layers"
)


def has_one_width(architecture: Architecture) -> bool:
    """Say whether every layer has the same number of heads."""
    return len({block.width for block in architecture.blocks}) == 1


def end_of_text(tokenizer: Path | None) -> tuple[str, int] | None:
    """Return the token that ends a text, and its id, where a `tokenizer.json` has one."""
    if tokenizer is None:
        return None
    try:
        added = json.loads(tokenizer.read_text(encoding="utf-8")).get("added_tokens") or []
        special = {str(token["content"]): int(token["id"]) for token in added if token.get("special")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidFileError(f"tokenizer {tokenizer} cannot be read: {error}", hint="train again") from error
    named = [word for word in END_OF_TEXT if word in special] or list(special)
    return (named[0], special[named[0]]) if named else None


def write_side_files(
    folder: Path, architecture: Architecture, context_length: int, dtype: str, tokenizer: Path | None
) -> tuple[str, ...]:
    """Write them and return their names.

    Args:
        folder: Beside the graph.
        architecture: The model.
        context_length: Tokens the cache may hold.
        dtype: Of activations and cache: `float32` or `float16`.
        tokenizer: The `tokenizer.json` that goes with the model, None for none.
    """
    end = end_of_text(tokenizer)
    ends = {"bos_token_id": end[1], "eos_token_id": end[1], "pad_token_id": end[1]} if end else {}
    documents: dict[str, Any] = {
        "config.json": llama_config(architecture, context_length, dtype, ends),
        "generation_config.json": ends,
        "genai_config.json": genai_config(architecture, context_length, dtype, ends),
    }
    if end:
        words = {"bos_token": end[0], "eos_token": end[0], "pad_token": end[0]}
        documents["special_tokens_map.json"] = words
        documents["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
            **words,
        }
    for name, document in documents.items():
        write_atomic(folder / name, json.dumps(document, indent=2) + "\n")  # nothing of ours in it
    return tuple(documents)


def llama_config(architecture: Architecture, context_length: int, dtype: str, ends: dict[str, int]) -> dict[str, Any]:
    """Return `config.json`; a layer counts as often as it is executed."""
    first = architecture.blocks[0]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": architecture.vocab_size,
        "hidden_size": first.width,
        "intermediate_size": first.ffn_width,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.heads(0),
        "num_key_value_heads": architecture.heads(0),
        "head_dim": architecture.head_dim,
        "max_position_embeddings": context_length,
        "rms_norm_eps": NORM_EPSILON,
        "rope_theta": ROPE_THETA,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "transformers.js_config": {"dtype": "fp32", "kv_cache_dtype": {"fp32": dtype, "fp16": dtype}},
        **ends,
    }


def genai_config(architecture: Architecture, context_length: int, dtype: str, ends: dict[str, int]) -> dict[str, Any]:
    """Return `genai_config.json`; heads and widths are the first layer's, the graph says each layer's own."""
    decoder = {
        "session_options": {"provider_options": [{"cuda": {}}] if dtype == "float16" else []},
        "filename": "model.onnx",
        "head_size": architecture.head_dim,
        "hidden_size": architecture.blocks[0].width,
        "num_attention_heads": architecture.heads(0),
        "num_key_value_heads": architecture.heads(0),
        "num_hidden_layers": architecture.depth,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {
        "type": "decoder",
        "vocab_size": architecture.vocab_size,
        "context_length": context_length,
        "decoder": decoder,
        **ends,
    }
    search = {"do_sample": False, "max_length": context_length, "past_present_share_buffer": dtype == "float16"}
    return {"model": model, "search": search}
