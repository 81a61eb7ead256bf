"""What lies beside a tokenizer: its special tokens and its chat template, as Hugging Face writes them.

`tokenizer_config.json` holds both, unless the template has a file of its own, `chat_template.jinja`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merino_edge.errors import InvalidFileError
from merino_edge.files import parse_json, read_text

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
MAX_TEMPLATE_BYTES = 1 << 18


def tokenizer_settings(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return the chat template in a folder (the default one of several), and the special tokens by name.

    Raises:
        InvalidFileError: a file that should hold them cannot be read.
    """
    path = folder / CONFIG
    config = parse_json(read_text(path, "tokenizer's settings"), str(path)) if path.is_file() else {}
    template = _default(config.get("chat_template"))
    if (folder / TEMPLATE).is_file():
        template = read_text(folder / TEMPLATE, "chat template")
    if template is not None and (not isinstance(template, str) or len(template.encode()) > MAX_TEMPLATE_BYTES):
        raise InvalidFileError(f"{folder}: its chat template is no text of at most {MAX_TEMPLATE_BYTES} bytes")
    words = {name: _word(value) for name, value in config.items() if name.endswith("_token")}
    return template, {name: word for name, word in words.items() if word is not None}


def _default(value: Any) -> Any:
    """Return the template called default, where there are several."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        return named.get("default")
    return value


def _word(value: Any) -> str | None:
    """Return a special token, which may be written with its properties."""
    word = value.get("content") if isinstance(value, dict) else value
    return word if isinstance(word, str) else None
