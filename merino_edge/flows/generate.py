"""`generate`: the host tokenizes, the device computes and samples, the host shows the text as it comes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from merino_edge.agent.text import TextStream, end_of_text
from merino_edge.bundle import TOKENIZER
from merino_edge.device.client import Device, GenerateOptions
from merino_edge.errors import UsageError
from merino_edge.flows.chat import read_template
from merino_edge.flows.deploy import deployed_to, template_file, tokenizer_store
from merino_edge.flows.devices import Ask, find_entry, opened, select_device
from merino_edge.progress import SILENT, Progress


class _Tokenizer(Protocol):
    def encode(self, sequence: str, *, add_special_tokens: bool = ...) -> Any: ...

    def decode(self, ids: list[int], skip_special_tokens: bool = ...) -> str: ...

    def token_to_id(self, token: str) -> int | None: ...


@dataclass(frozen=True)
class Sampling:
    """How to continue a text.

    Attributes:
        max_tokens: At most so many new tokens.
        temperature: 0 takes the likeliest token each time.
        top_p: Smallest set of tokens with this probability.
        top_k: At most so many tokens; 0 for all.
        seed: Same seed, same text.
        stop: Texts at which to stop; they are not shown.
    """

    max_tokens: int = 64
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers of the command line."""
        if self.max_tokens < 1:
            raise UsageError("--max-tokens must be at least 1")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"--temperature {self.temperature} must lie between 0 and 100")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p} must lie between 0 and 1")
        if self.top_k < 0 or self.seed < 0:
            raise UsageError("--top-k and --seed must not be negative")


def load_tokenizer(device: str, manifest: dict[str, Any]) -> _Tokenizer:
    """Load the tokenizer of a deployed release from the host's store."""
    from tokenizers import Tokenizer

    path: Path = tokenizer_store(device) / f"{tokenizer_digest(manifest)}.json"
    if not path.is_file():
        raise UsageError(
            f"this host has no copy of the tokenizer of {device}'s release", hint="deploy from here: merino-edge deploy"
        )
    tokenizer: _Tokenizer = Tokenizer.from_file(str(path))
    return tokenizer


def tokenizer_digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of the tokenizer of a release."""
    digests = [str(f["sha256"]) for f in manifest["files"] if f["name"] == TOKENIZER]
    if not digests:
        raise UsageError("what is deployed has no tokenizer", hint="train with: merino-edge train, then deploy again")
    return digests[0]


class DeployedModel:
    """What a device has deployed, with its tokenizer: continues texts, one after the other.

    Attributes:
        device: The device's name.
        release: Number of the release in use.
        manifest: Its manifest.
        tokenizer: Of this host's store.
        chat: Its chat template, None where it has none.
        ends: Tokens that end a text.
        stats: Of the last text: `tokens`, `seconds`, `load_ms`, `prefill_ms`.
    """

    def __init__(self, name: str, device: Device, again: Sequence[str] = ("generate", "PROMPT")) -> None:
        """Ask an open device what it has deployed.

        Args:
            name: The device's name.
            device: Itself.
            again: The words of the command, which a hint repeats for a device that has something.

        Raises:
            UsageError: nothing, or random weights, or no tokenizer is here.
        """
        self.device = name
        self._device, self._again = device, again
        self.stats: dict[str, float] = {}
        self.refresh()

    def refresh(self) -> None:
        """Notice where another release was switched to."""
        current = self._device.current()
        if current is None:
            raise self._nothing()
        self.release = int(current["release"])
        self.manifest = current["manifest"]
        if not self.manifest["trained"]:
            raise UsageError(
                "the deployed weights are random (trained: false)", hint="merino-edge train, then merino-edge deploy"
            )
        self.tokenizer = load_tokenizer(self.device, self.manifest)
        self.chat = read_template(template_file(self.device, tokenizer_digest(self.manifest)))
        self.end = end_of_text(self.tokenizer)
        said = self.tokenizer.token_to_id(self.chat.words.get("eos_token", "")) if self.chat else None
        self.ends = tuple(sorted({token for token in (self.end, said) if token is not None}))

    def _nothing(self) -> UsageError:
        """Say that nothing is deployed, and where something is, as far as this host knows."""
        text, hint = f"nothing is deployed on {self.device}", f"merino-edge deploy --device {self.device}"
        others = [name for name in deployed_to() if name != self.device]
        if others:
            names = others[0] if len(others) == 1 else "DEVICE"
            text += (
                f"; {' and '.join(others)} {'has a model' if len(others) == 1 else 'have models'} deployed from here"
            )
            hint = shlex.join(["merino-edge", *self._again, "--device", names])
        return UsageError(text, hint=hint)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return int(self.manifest["context_length"])

    def encode(self, prompt: str, special: bool = True) -> list[int]:
        """Return the token ids of a prompt, at least one; what a chat template wrote has its special tokens already.

        Raises:
            UsageError: the prompt holds what is no text.
        """
        if any("\ud800" <= c <= "\udfff" for c in prompt):
            raise UsageError("the prompt is not valid UTF-8", hint="convert it with: iconv -t UTF-8")
        return list(self.tokenizer.encode(prompt, add_special_tokens=special).ids) or [self.end or 0]

    def stream(self, prompt_ids: list[int], sampling: Sampling) -> Generator[str, None, None]:
        """Yield the text after a prompt as it comes; closing the iterator stops the device."""
        self.stats = {}
        options = _device_options(sampling, len(prompt_ids), self.context_length, self.ends)
        with closing(self._device.generate(prompt_ids, options)) as ids:
            yield from texts(ids, TextStream(self.tokenizer, sampling.stop))
        self.stats = dict(self._device.last_generation or {})


def generate(
    prompt: str,
    device_name: str | None,
    sampling: Sampling,
    emit: Callable[[str], None],
    ask: Ask | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Continue a prompt with the current release of a device, handing out text as it comes.

    Args:
        prompt: What to continue.
        device_name: `--device`.
        sampling: How.
        emit: Takes each piece of new text.
        ask: How to ask a person.
        progress: Where to report.

    Returns:
        The document of `merino-edge generate --json`.
    """
    name = select_device(device_name, None, progress)
    with opened(find_entry(name), ask) as device:
        model = DeployedModel(name, device, ("generate", prompt))
        prompt_ids = model.encode(prompt)
        text = ""
        for piece in model.stream(prompt_ids, sampling):
            text += piece
            emit(piece)
    tokens, seconds = model.stats.get("tokens", 0), model.stats.get("seconds", 0.0)
    return {
        "device": name,
        "release": model.release,
        "prompt": prompt,
        "prompt_tokens": len(prompt_ids),
        "text": text,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds if seconds else None,
        "load_ms": model.stats.get("load_ms"),
        "prefill_ms": model.stats.get("prefill_ms"),
    }


def _device_options(
    sampling: Sampling, prompt_tokens: int, context_length: int, ends: tuple[int, ...]
) -> GenerateOptions:
    room = context_length - prompt_tokens
    if room < 1:
        raise UsageError(
            f"the prompt has {prompt_tokens} tokens, the context holds {context_length}", hint="shorten the prompt"
        )
    return GenerateOptions(
        max_tokens=min(sampling.max_tokens, room),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop_ids=ends,
    )


def texts(ids: Iterable[int], stream: TextStream) -> Iterator[str]:
    """Turn token ids into text as they come, and stop at a stop string."""
    for token in ids:
        piece = stream.push(token)
        if piece:
            yield piece
        if stream.stopped:
            return
    rest = stream.end()
    if rest:
        yield rest
