"""A request for a completion in OpenAI's form, checked once: what is wrong or not supported is refused by name."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from merino_edge.errors import UsageError, did_you_mean
from merino_edge.flows.generate import Sampling

MAX_STOPS = 4
_BOTH = (
    "model", "max_tokens", "temperature", "top_p", "top_k", "n", "stream", "stream_options", "stop", "seed", "logprobs",
    "frequency_penalty", "presence_penalty", "logit_bias", "user",
)  # fmt: skip
_KEYS = (*_BOTH, "prompt", "best_of", "echo", "suffix")
_CHAT_KEYS = (*_BOTH, "messages", "max_completion_tokens")
_ROLES = ("system", "user", "assistant")
_CHAT_TOKENS = 1 << 20  # to the end of the context, where nobody says how many
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # accepted where they ask for nothing
    "n": (None, 1), "best_of": (None, 1), "logprobs": (None, 0, False), "suffix": (None, ""),
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}),
}  # fmt: skip

_NUMBERS: dict[str, tuple[type[int] | type[float], float | None]] = {
    "max_tokens": (int, 16), "temperature": (float, 1.0), "top_p": (float, 1.0), "top_k": (int, 0), "seed": (int, None),
}  # fmt: skip


class RequestError(Exception):
    """A request that gets an error document, in OpenAI's form."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> None:
        """Keep status, sentence, type and code."""
        super().__init__(message)
        self.status = status
        self.document = {"error": {"message": message, "type": kind, "param": None, "code": code}}


@dataclass(frozen=True)
class Completion:
    """A checked request.

    Attributes:
        prompt: Text, or token ids.
        sampling: How to continue it.
        stream: Send the text as it comes.
        usage: At the end of a stream, count tokens.
        echo: Begin the answer with the prompt.
        chat: The prompt is a conversation in its template, special tokens and all.
    """

    prompt: str | list[int]
    sampling: Sampling
    stream: bool
    usage: bool
    echo: bool
    chat: bool = False


def parse_completion(body: bytes, model: str) -> Completion:
    """Check the body of `POST /v1/completions`.

    Raises:
        RequestError: 400 for what is wrong or not supported, 404 for another model.
    """
    asked = _checked(body, model, _KEYS)
    return Completion(
        prompt=_prompt(asked.get("prompt", "")),
        sampling=_sampling(asked),
        stream=_flag(asked, "stream"),
        usage=bool((asked.get("stream_options") or {}).get("include_usage")),
        echo=_flag(asked, "echo"),
    )


def parse_chat(body: bytes, model: str, render: Callable[[list[dict[str, str]]], str]) -> Completion:
    """Check the body of `POST /v1/chat/completions`.

    Args:
        body: The request's.
        model: Name of the model there is.
        render: Turns messages into a prompt.

    Raises:
        RequestError: as `parse_completion`.
    """
    asked = _checked(body, model, _CHAT_KEYS)
    most = asked.pop("max_completion_tokens", None)
    asked["max_tokens"] = next((n for n in (most, asked.get("max_tokens")) if n is not None), _CHAT_TOKENS)
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "'messages' must be a list of messages")
    try:
        prompt = render([_message(message) for message in messages])
    except UsageError as error:
        raise RequestError(400, error.message) from error
    usage = bool((asked.get("stream_options") or {}).get("include_usage"))
    return Completion(prompt, _sampling(asked), _flag(asked, "stream"), usage, echo=False, chat=True)


def _message(message: Any) -> dict[str, str]:
    """Return one message with its text in one piece."""
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise RequestError(400, f"a message needs a 'role' of {', '.join(_ROLES)}")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise RequestError(400, "the 'content' of a message must be text")
    return {"role": str(message["role"]), "content": content}


def _checked(body: bytes, model: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the request, its keys and what it asks for nothing by checked."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON: {error}") from None
    if not isinstance(asked, dict):
        raise RequestError(400, "the body must be a JSON object")
    for key in asked:
        if key not in keys:
            raise RequestError(400, f"unknown key '{key}'{did_you_mean(key, keys)}")
    for key, neutral in _NEUTRAL.items():
        if asked.get(key) not in neutral:
            raise RequestError(400, f"'{key}' is not supported: leave it out")
    if asked.get("model") not in (None, model):
        raise RequestError(404, f"there is no model {asked['model']!r}; there is '{model}'", code="model_not_found")
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RequestError(400, "'stream_options' must be an object")
    return asked


def _prompt(value: Any) -> str | list[int]:
    """Return a text or token ids; a list of one of them is that one."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(t, int) and not isinstance(t, bool) for t in value):
        return value
    raise RequestError(400, "'prompt' must be one text or one list of token ids")


def _sampling(asked: dict[str, Any]) -> Sampling:
    stop = asked.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) for s in stops):
        raise RequestError(400, f"'stop' must be a text or a list of at most {MAX_STOPS} texts")
    numbers = {key: _number(asked.get(key), key, *rule) for key, rule in _NUMBERS.items()}
    try:
        return Sampling(**numbers, stop=tuple(stops))
    except UsageError as error:
        raise RequestError(400, error.message.replace("--", "").replace("-", "_", 1)) from None


def _number(value: Any, key: str, kind: type[int] | type[float], default: float | None) -> Any:
    """Return a number of the kind wanted; a seed that nobody gave is drawn."""
    if value is None:
        return secrets.randbelow(1 << 31) if default is None else default
    fits = isinstance(value, int) if kind is int else isinstance(value, int | float) and math.isfinite(value)
    if isinstance(value, bool) or not fits or abs(value) >= 1 << 62:
        raise RequestError(400, f"'{key}' cannot be {value!r}")
    return kind(value)


def _flag(asked: dict[str, Any], key: str) -> bool:
    value = asked.get(key)
    if value not in (None, True, False):
        raise RequestError(400, f"'{key}' must be true or false")
    return bool(value)
