"""The agent's one error: a kind that the host maps to its own tree, a sentence, a next step."""

from __future__ import annotations

KINDS = (
    "busy",  # somebody else holds the lock
    "corrupt",  # bytes are not what their digest says
    "missing",  # an object, release or runtime is not here
    "smoke",  # a release does not answer as its manifest says
    "memory",  # the model does not fit the free memory
    "runtime",  # the runtime cannot be imported, crashes, or computes wrongly
    "disk",  # full, read-only, or broken
    "request",  # the host asked something this agent does not know
    "usage",  # somebody asked for what this machine cannot do
    "cancelled",  # the host asked to stop
    "failed",  # anything else
)


class AgentError(Exception):
    """What goes into an error frame."""

    def __init__(self, kind: str, message: str, hint: str = "", **details: object) -> None:
        assert kind in KINDS, kind
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.details = details

    def to_json(self) -> dict[str, object]:
        """Return the payload of an error frame."""
        return {"kind": self.kind, "message": self.message, "hint": self.hint, "details": self.details}

    @classmethod
    def from_json(cls, value: dict[str, object]) -> AgentError:
        """Read the payload of an error frame (the agent reads its child's)."""
        kind = str(value.get("kind"))
        details = value.get("details")
        return cls(
            kind if kind in KINDS else "failed",
            str(value.get("message") or "the child failed without a word"),
            str(value.get("hint") or ""),
            **(details if isinstance(details, dict) else {}),
        )
