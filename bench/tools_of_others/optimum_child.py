"""Generates in optimum's ORTModelForCausalLM: `optimum_child.py FOLDER TEXT TOKENS`, prints one JSON line."""

import importlib.metadata
import json
import sys

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

folder, text, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
encoded = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
model = ORTModelForCausalLM.from_pretrained(folder)
mask = encoded["attention_mask"]
tokens = model.generate(encoded["input_ids"], attention_mask=mask, max_new_tokens=count, do_sample=False)[0].tolist()
prompt = encoded["input_ids"][0].tolist()
version = importlib.metadata.version("optimum-onnx")
print(json.dumps({"version": version, "prompt": prompt, "generated": tokens[len(prompt) :]}))
