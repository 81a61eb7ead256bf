"""From token ids to text as it comes: no half characters, nothing of a stop string. One copy, for host and board."""

from __future__ import annotations

from typing import Any, Sequence

END_OF_TEXT = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")  # names a tokenizer may give it


def end_of_text(tokenizer: Any) -> int | None:
    """Return the token that ends a text, None where the tokenizer has none."""
    return next((i for i in map(tokenizer.token_to_id, END_OF_TEXT) if i is not None), None)


def visible(text: str) -> str:
    """Return a model's text without what would steer a terminal: any token may hold an escape code."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


class TextStream:
    """Text of token ids that come one by one.

    Args:
        tokenizer: Has `decode(ids, skip_special_tokens=True)`.
        stops: Texts at which to stop; they are not shown. Empty ones count for nothing.

    Attributes:
        stopped: A stop string has come: nothing more will.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._taken = 0  # characters of the decoded text that were handed on
        self._held = ""  # what might become a stop string

    def push(self, token: int) -> str:
        """Take a token id; return the text that may be shown because of it.

        Half a character waits for its other half.
        """
        self._ids.append(token)
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return "" if text.endswith("\ufffd") else self._take(text)

    def end(self) -> str:
        """Return what was still held back."""
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True) if self._ids else ""
        shown = self._take(text)
        held, self._held = ("", "") if self.stopped else (self._held, "")
        return shown + held

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text[self._taken :]
        self._taken = max(self._taken, len(text))
        found = [self._held.index(stop) for stop in self._stops if stop in self._held]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown
