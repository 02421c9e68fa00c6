"""That something raises, without a test framework."""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar

E = TypeVar("E", bound=BaseException)


class raises(Generic[E]):  # noqa: N801 -- it reads like a word of the sentence
    """A block that must raise `kind`; `error` is then what it raised."""

    error: E

    def __init__(self, kind: type[E]) -> None:
        self._kind = kind

    def __enter__(self) -> raises[E]:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> bool:
        assert error is not None, f"{self._kind.__name__} was not raised"
        if isinstance(error, self._kind):
            self.error = error
            return True
        return False
