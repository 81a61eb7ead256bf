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

    A token costs what decoding the last few does: what came before them is settled. They are decoded behind a piece
    that was shown already, since some decoders treat a first token unlike others (SentencePiece's drop its space).

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
        self._ids: list[int] = []  # of the last piece that was handed on, and all after it
        self._settled = 0  # how many of them were handed on
        self._taken = 0  # characters of their text that were handed on
        self._held = ""  # what might become a stop string

    def push(self, token: int) -> str:
        """Take a token id; return the text that may be shown because of it.

        Half a character waits for its other half.
        """
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith("\ufffd") or len(text) <= self._taken:
            return ""
        new, last = text[self._taken :], self._ids[self._settled :]
        behind = len(self._decode(last))
        if behind:  # alone it has a text, so it is no special token: good enough to decode behind
            self._ids, self._taken = last, behind
        else:
            self._taken = len(text)
        self._settled = len(self._ids)
        return self._take(new)

    def end(self) -> str:
        """Return what was still held back."""
        shown = self._take(self._decode(self._ids)[self._taken :] if self._ids else "")
        self._ids, self._settled, self._taken = [], 0, 0
        held, self._held = ("", "") if self.stopped else (self._held, "")
        return shown + held

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        found = [self._held.index(stop) for stop in self._stops if stop in self._held]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown
