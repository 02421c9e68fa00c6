"""Which steps' failures led to an exception."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, TypeVar, cast

_ORIGIN: Final = "__durable_origin__"
_E = TypeVar("_E", bound=BaseException)


def marked(exception: _E, token: str, key: str) -> _E:
    """The exception, remembering that the step `key` of the execution `token` raised it."""
    # On the exception itself, so that nothing keeps it, and the frames of its traceback, alive but its user.
    BaseException.__setattr__(exception, _ORIGIN, (token, key))
    return exception


def blamed(exception: BaseException, token: str) -> tuple[str, ...]:
    """The keys whose exceptions can be reached from this one through cause, context and group membership, sorted."""
    return tuple(sorted(set(_origins(exception, token))))


def origin(exception: BaseException, token: str) -> str:
    """The key of the step that raised this exception, or else one that it came of; empty when none did."""
    return next(_origins(exception, token), "")


def _origins(exception: BaseException, token: str) -> Iterator[str]:
    """The nearest first."""
    seen: set[int] = set()
    open_ends: deque[BaseException | None] = deque([exception])
    while open_ends:
        link = open_ends.popleft()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        mark = getattr(link, _ORIGIN, None)
        if mark is not None and mark[0] == token:
            yield mark[1]
        open_ends += [link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            open_ends += cast(BaseExceptionGroup[BaseException], link).exceptions
