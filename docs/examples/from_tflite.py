"""Continue a text greedily with a deployed or exported TFLite model: ai-edge-litert, numpy and tokenizers.

python3 from_tflite.py FOLDER "Once upon a time" [MAX_TOKENS]
"""

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from tokenizers import Tokenizer

folder, prompt = Path(sys.argv[1]), sys.argv[2]
max_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 32
CONTEXT = json.loads((folder / "manifest.json").read_text())["context_length"]  # prompt and answer together
CHUNK = 128  # tokens of a prompt at once: more take more memory, and with 8-bit activations round otherwise

tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
runner = Interpreter(str(folder / "model.tflite")).get_signature_runner()
cache = {}  # past.{executed layer}.key and .value: (1, heads, places, head_dim)
for name, detail in runner.get_input_details().items():
    if name.startswith("past."):
        _, heads, _, head_dim = detail["shape_signature"]
        cache[name] = np.zeros((1, heads, CONTEXT, head_dim), np.float32)
mask = np.full((1, 1, 1, CONTEXT), -1e9, np.float32)  # added to the scores: hides places that are not filled


def feed(ids: list[int], length: int) -> np.ndarray:
    """Append tokens after `length` others and return the logits (V,) after the last of them."""
    total = length + len(ids)
    given = {
        "input_ids": np.array([ids], np.int32),
        "positions": np.arange(length, total, dtype=np.int32)[None],
        "logits_index": np.array([len(ids) - 1], np.int32),  # positions whose logits are wanted
        "cache_mask": mask,
    }
    found = runner(**given, **cache)
    for name in cache:
        cache[name][:, :, length:total] = found[name.replace("past", "new")]
    mask[..., length:total] = 0
    return found["logits"][0]


prompt_ids = tokenizer.encode(prompt).ids
for start in range(0, len(prompt_ids), CHUNK):  # prefill
    logits = feed(prompt_ids[start : start + CHUNK], start)
length, answer = len(prompt_ids), []
end = tokenizer.token_to_id("<|endoftext|>")
while len(answer) < max_tokens and length < CONTEXT:
    token = int(np.argmax(logits))
    if token == end:
        break
    answer.append(token)
    logits, length = feed([token], length), length + 1  # decode: one token at a time
print(prompt + tokenizer.decode(answer))
