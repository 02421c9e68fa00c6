"""What a codec must do."""

from __future__ import annotations

from typing import Any, Protocol


class Codec(Protocol):
    """How values are written. The three methods are called from any thread, and must not wait for anything.

    `annotation` is the return annotation of the function that made the value, None where it has none. A codec may have
    a fourth, `check_promise(annotation, *, what)`, called before a body is: it raises `UnstorableValue` for an
    annotation of which it can write no value.
    """

    @property
    def name(self) -> str:
        """The name in each record that this codec wrote, by which it is found again: it can never change."""
        ...

    def encode(self, value: Any, *, what: str, annotation: Any = None) -> bytes:
        """JSON in UTF-8 from which `decode` makes the value; raises `UnstorableValue`, naming `what`, when it could not."""
        ...

    def decode(self, text: bytes, *, run_id: str, where: str, annotation: Any = None) -> Any:
        """A new copy of the value that was encoded; raises `UnreadableRecord` when this is not the JSON of one."""
        ...

    def fingerprint(self, value: Any, *, what: str) -> str:
        """A short text, equal for equal values whatever the order of their dicts; raises `UnstorableValue` as `encode` does."""
        ...
