"""A conversation as one prompt: the tokenizer's own chat template, in Jinja's sandbox.

A template is kept beside the tokenizer of what was deployed, where its checkpoint or bundle has one:
`chat_template.jinja`, or `chat_template` in `tokenizer_config.json`, as Hugging Face writes them. Training takes it
over from beside the tokenizer that it was told to use, an export from the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merino_edge.errors import UsageError
from merino_edge.files import read_json, write_atomic, write_json
from merino_edge.tokenizer_settings import CONFIG, tokenizer_settings


@dataclass(frozen=True)
class ChatTemplate:
    """How a tokenizer wants conversations written.

    Attributes:
        text: The Jinja template.
        words: Its special tokens by name: `bos_token`, `eos_token`, ...
    """

    text: str
    words: dict[str, str]

    def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """Return the prompt of a conversation, up to where the assistant begins to speak.

        Raises:
            UsageError: the template refuses the conversation, or is none; or jinja2 is not installed.
        """
        try:
            from jinja2 import TemplateError
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise UsageError("a chat template needs jinja2", hint="pip install 'merino-edge[serve]'") from None

        def refuse(message: str) -> str:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], autoescape=False
        )
        environment.globals["raise_exception"] = refuse
        try:
            template = environment.from_string(self.text)
            return template.render(messages=list(messages), add_generation_prompt=True, **self.words)
        except (TemplateError, TypeError, ValueError, LookupError, OverflowError, RecursionError) as error:
            raise UsageError(f"the chat template refuses this conversation: {error}") from error


def find_template(*folders: Path | None) -> ChatTemplate | None:
    """Return the template of the first folder that has one.

    Raises:
        InvalidFileError: a file that should hold it cannot be read.
    """
    for folder in folders:
        text, words = tokenizer_settings(folder) if folder is not None else (None, {})
        if text is not None:
            return ChatTemplate(text, words)
    return None


def copy_template(source: Path, target: Path) -> tuple[str, ...]:
    """Write the template of one folder into another's `tokenizer_config.json`; return the names of what was written."""
    template = find_template(source)
    if template is None:
        return ()
    there = read_json(target / CONFIG, "tokenizer's settings") if (target / CONFIG).is_file() else {}
    text = json.dumps({**there, **template.words, "chat_template": template.text}, indent=2, ensure_ascii=False)
    write_atomic(target / CONFIG, text + "\n")  # other tools read it too: nothing of ours in it
    return (CONFIG,)


def keep_template(path: Path, template: ChatTemplate | None) -> None:
    """Write a template where `read_template` finds it, or remove the one that was there."""
    if template is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, {"text": template.text, "words": template.words})


def read_template(path: Path) -> ChatTemplate | None:
    """Read what `keep_template` wrote, None where there is nothing."""
    if not path.is_file():
        return None
    value = read_json(path, "chat template")
    return ChatTemplate(str(value["text"]), {str(k): str(v) for k, v in value["words"].items()})
