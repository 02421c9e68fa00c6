"""What a codec owes."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Codec"]


class Codec(Protocol):
    """How values are written. All three verbs are called from any thread, and never wait for anything.

    `annotation` is what the function that made the value says it returns, None when it says nothing. A codec may have a
    fourth verb, `check_promise(annotation, *, what)`, which raises `UnstorableValue` for an annotation of which it can
    write no value: it is asked before a body is called.
    """

    @property
    def name(self) -> str:
        """What stands in each record that this codec wrote, and is looked for when it is read: a name for ever."""
        ...

    def encode(self, value: Any, *, what: str, annotation: Any = None) -> bytes:
        """JSON in UTF-8 that `decode` makes the value from; `UnstorableValue` naming `what` when it could not."""
        ...

    def decode(self, text: bytes, *, run_id: str, where: str, annotation: Any = None) -> Any:
        """A new copy of the value that was encoded; `UnreadableRecord` when this is not the JSON of one."""
        ...

    def fingerprint(self, value: Any, *, what: str) -> str:
        """A short text, equal for equal values whatever the order of their dicts; `UnstorableValue` as for `encode`."""
        ...
