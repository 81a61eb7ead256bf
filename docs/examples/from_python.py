"""Continue a text greedily with a deployed or exported ONNX model: onnxruntime, numpy and tokenizers, nothing of ours.

python3 from_python.py FOLDER "Once upon a time" [MAX_TOKENS]
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, prompt = Path(sys.argv[1]), sys.argv[2]
max_tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 32
CONTEXT = json.loads((folder / "manifest.json").read_text())["context_length"]  # prompt and answer together
CHUNK = 256  # tokens of a prompt at once: more take more memory, and with 8-bit activations round otherwise

tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
shapes = {i.name: i.shape for i in session.get_inputs()}
in_place = "past_length" in shapes  # the form `fast`: keys and values are written into the cache that was passed in
cache = {}  # past.{block}.key and .value: (layers, 1, heads, positions, head_dim)
for name in [name for name in shapes if name.startswith("past.")]:
    layers, _, heads, _, head_dim = shapes[name]
    array = np.zeros((layers, 1, heads, CONTEXT if in_place else 0, head_dim), np.float32)
    cache[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)


def feed(ids: list[int], past_length: int) -> np.ndarray:
    """Append tokens to the cache and return the logits (V,) after the last of them."""
    binding = session.io_binding()
    binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
    binding.bind_cpu_input("logits_index", np.array([len(ids) - 1], np.int64))  # positions whose logits are wanted
    if in_place:
        binding.bind_cpu_input("past_length", np.array([past_length], np.int64))
    binding.bind_output("logits", "cpu")
    for name, value in cache.items():
        binding.bind_ortvalue_input(name, value)
        present = name.replace("past", "present")
        binding.bind_ortvalue_output(present, value) if in_place else binding.bind_output(present, "cpu")
    session.run_with_iobinding(binding)
    logits, *presents = binding.get_outputs()  # in the order they were bound
    if not in_place:
        cache.update(zip(cache, presents))
    return logits.numpy()[0]


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
