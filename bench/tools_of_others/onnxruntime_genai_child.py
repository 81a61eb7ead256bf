"""Generates in onnxruntime-genai: `onnxruntime_genai_child.py FOLDER TEXT TOKENS`, prints one JSON line."""

import importlib.metadata
import json
import sys

import onnxruntime_genai as genai

folder, text, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = genai.Config(folder)
config.clear_providers()  # the CPU, whatever the file was written for
model = genai.Model(config)
prompt = [int(token) for token in genai.Tokenizer(model).encode(text)]
parameters = genai.GeneratorParams(model)
parameters.set_search_options(max_length=len(prompt) + count, do_sample=False)
generator = genai.Generator(model, parameters)
generator.append_tokens(prompt)
generated = []
while not generator.is_done():
    generator.generate_next_token()
    generated.append(int(generator.get_next_tokens()[0]))
version = importlib.metadata.version("onnxruntime-genai")
print(json.dumps({"version": version, "prompt": prompt, "generated": generated}))
