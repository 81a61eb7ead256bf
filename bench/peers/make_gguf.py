"""GPT-2-124M's shape as a GGUF file, with random weights and no vocabulary.

    python make_gguf.py TYPE PATH

TYPE is `Q8_0` or `Q4_0`: of every matrix, the tied table among them. (llama.cpp's own converter would
keep that table at 6 bits in a Q4_0 file: more bytes to read, so this is to its favour.) Runs in the
environment `llama`.
"""

from __future__ import annotations

import sys

import gguf
import numpy as np

LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 12, 768, 12, 50_257, 1280


def main() -> None:
    """Write the file."""
    kind, path = gguf.GGMLQuantizationType[sys.argv[1]], sys.argv[2]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name("gpt2-124m-shape")
    writer.add_block_count(LAYERS)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(4 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type({"Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0}[kind.name])

    def matrix(name: str, rows: int, columns: int, type_: gguf.GGMLQuantizationType = kind) -> None:
        values = random.standard_normal((rows, columns), np.float32) * np.float32(0.02)
        writer.add_tensor(name, gguf.quants.quantize(values, type_), raw_dtype=type_)

    def vector(name: str, size: int, value: float) -> None:
        writer.add_tensor(name, np.full(size, value, np.float32))

    matrix("token_embd.weight", VOCABULARY, WIDTH)
    matrix("position_embd.weight", POSITIONS, WIDTH, gguf.GGMLQuantizationType.F32)
    for i in range(LAYERS):
        block = f"blk.{i}."
        for name, rows, columns in (
            ("attn_qkv", 3 * WIDTH, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_up", 4 * WIDTH, WIDTH),
            ("ffn_down", WIDTH, 4 * WIDTH),
        ):
            matrix(f"{block}{name}.weight", rows, columns)
            vector(f"{block}{name}.bias", rows, 0.0)
        for name in ("attn_norm", "ffn_norm"):
            vector(f"{block}{name}.weight", WIDTH, 1.0)
            vector(f"{block}{name}.bias", WIDTH, 0.0)
    vector("output_norm.weight", WIDTH, 1.0)
    vector("output_norm.bias", WIDTH, 0.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
