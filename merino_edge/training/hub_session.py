"""Any causal model of transformers as something that is fed tokens, for timing it beside exported files.

It has the methods of `merino_edge.agent.session.Session`, float32 on the processor, and the library's own
cache. A folder that holds a configuration and no weights gives random ones: right for timing, useless for text.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils.hub import cached_file

from merino_edge.errors import UsageError

Tokens = Sequence[int] | npt.NDArray[Any]

WEIGHTS = ("*.safetensors", "*.bin")
VERSIONS = {"runtime": "torch", "runtime_version": f"{torch.__version__}, transformers {transformers.__version__}"}


class HubSession:
    """A model of the hub, or a folder in its format.

    Args:
        name: Name or path.
        threads: Of torch.

    Attributes:
        length: Positions in the cache.
        provider: What executes it.
        prefill_chunk: Tokens of a prompt that are fed at once.
        vocab_size: V.
        context_length: The longest it was made for.
        trained: False where the folder holds no weights.
        parameters: Each once.
        file_bytes: Of its weights on disk; None where there are none.

    Raises:
        UsageError: there is no such model.
    """

    provider = "CPU"
    prefill_chunk = 1024  # in one piece, as the library reads prompts

    def __init__(self, name: str, threads: int) -> None:
        """Load it."""
        torch.set_num_threads(threads)
        self._name = name
        folder = Path(name)
        if name.startswith(("/", "./", "../", "~")) and not folder.is_dir():
            raise UsageError(f"hf:{name}: there is no such folder", hint="a name of the hub is written hf:OWNER/NAME")
        self.trained = not (folder.is_dir() and not _weight_files(folder))
        try:
            config = AutoConfig.from_pretrained(name)
            if self.trained:
                model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
            else:
                torch.manual_seed(0)
                from_config: Any = AutoModelForCausalLM.from_config  # transformers gives it no types
                model = from_config(config, dtype=torch.float32)
        except (OSError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            hint = "is the name right, and is there a network?"
            raise UsageError(f"cannot open hf:{name}: {line}", hint=hint) from error
        self._model = model.eval()
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.vocab_size = int(config.vocab_size)
        longest: Any = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        self.context_length = int(longest or 1024)
        self.parameters = sum({id(p): p.numel() for p in model.parameters()}.values())
        self.file_bytes = _bytes_on_disk(name) if self.trained else None
        self.length = 0
        self._cache: Any = DynamicCache()

    @torch.inference_mode()
    def feed(self, token_ids: Tokens, want: Sequence[int]) -> npt.NDArray[Any]:
        """Append tokens; return float32 logits `(len(want), V)` of the positions among them that are wanted."""
        ids = torch.as_tensor(np.asarray(token_ids, np.int64))[None]  # (1, T)
        kept: dict[str, Any] = {}
        wanted = list(want)
        if self._takes_logits_to_keep and wanted != list(range(ids.shape[1])):
            kept, wanted = {"logits_to_keep": torch.tensor(wanted)}, list(range(len(wanted)))
        answer = self._model(ids, past_key_values=self._cache, use_cache=True, **kept)
        self._cache = answer.past_key_values
        self.length += ids.shape[1]
        logits: npt.NDArray[Any] = answer.logits[0].numpy()
        return logits if len(wanted) == len(logits) else logits[wanted]

    def chunks(self, token_ids: Tokens) -> Iterator[Tokens]:
        """Cut a text into what is fed at once."""
        for start in range(0, len(token_ids), self.prefill_chunk):
            yield token_ids[start : start + self.prefill_chunk]

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        if length == 0:
            self._cache = DynamicCache()
        elif length < self.length:
            self._cache.crop(length - self.length)  # negative: so many from the end
        self.length = length

    def close(self) -> None:
        """Free the model."""
        self._model = self._cache = None

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return the tokens of a text, nothing added.

        Raises:
            UsageError: no tokenizer lies beside the model.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._name)
        except (OSError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise UsageError(f"hf:{self._name} has no tokenizer: {line}", hint="leave out --text for it") from error
        return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)


def _weight_files(folder: Path) -> list[Path]:
    return [path for pattern in WEIGHTS for path in folder.glob(pattern)]


def _bytes_on_disk(name: str) -> int | None:
    """Return the bytes of a model's weights; of one form, where a repository holds several."""
    config = Path(name) / "config.json" if Path(name).is_dir() else Path(str(cached_file(name, "config.json")))
    for pattern in WEIGHTS:
        sizes = [path.stat().st_size for path in config.parent.glob(pattern)]
        if sizes:
            return sum(sizes)
    return None
