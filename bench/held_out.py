"""How hard is the held-out text that each vocabulary of the poster's rows was judged on?

    bench/held_out.py .poster CHECKPOINT        into bench/results/held_out.json

Every vocabulary is judged on its first 65,536 tokens of one text, so one with small tokens on less of it. A decoder of
any vocabulary (the demo model's checkpoint serves) scores the whole text; recorded are its bits a byte up to each end.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

CONTEXT = 512
RESULTS = Path(__file__).resolve().parent / "results"


def ends() -> dict[str, int]:
    """Return for each vocabulary of the recorded rows the bytes of text that it was judged on."""
    found = {}
    for row in json.loads((RESULTS / "poster_train.json").read_text(encoding="utf-8"))["result"]["rows"]:
        judged = row["judged"]["validation"]
        if row["data"] == "gpt2" or row["group"] in ("vocabulary", "control"):
            found[row["data"]] = round(judged["loss"] * judged["tokens"] / math.log(2) / judged["bits_per_byte"])
    return found


def main(folder: Path, checkpoint: Path) -> None:
    """Score the text, and record."""
    import torch
    from record import write_result
    from tokenizers import Tokenizer

    from merino_edge.training.model import MerinoForCausalLM

    facts = json.loads((folder / "gpt2" / "data.json").read_text(encoding="utf-8"))
    ids = np.fromfile(folder / "gpt2" / "validation.bin", np.uint16)[: facts["validation_tokens"]]
    text = Tokenizer.from_file(str(folder / "gpt2.json")).decode(ids.tolist(), skip_special_tokens=True)
    spelled = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text, add_special_tokens=False)
    model = MerinoForCausalLM.from_pretrained(checkpoint).eval()
    tokens, losses = torch.tensor(spelled.ids), np.zeros(len(spelled.ids))
    with torch.no_grad():
        for at in range(0, len(tokens) - 1, CONTEXT):
            window = tokens[at : at + CONTEXT + 1]
            logits = model(window[None, :-1]).logits[0].float()
            losses[at + 1 : at + len(window)] = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
    size = np.cumsum([0, *(len(letter.encode()) for letter in text)])
    until = size[[stop for _, stop in spelled.offsets]]  # bytes of text up to the end of each token
    bits = np.cumsum(losses) / math.log(2) / np.maximum(until, 1)
    judged = ends()
    found = {kind: float(bits[np.searchsorted(until, end) - 1]) for kind, end in judged.items()}
    over = {kind: value / found["gpt2"] - 1 for kind, value in found.items()}
    for kind, end in judged.items():
        print(f"{kind:9s} {end:8d} bytes {found[kind]:.4f} bits a byte, {100 * over[kind]:+.2f} % of GPT-2's")
    print(write_result("held_out", {"bytes": judged, "bits_per_byte": found, "over_gpt2": over}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
