"""Which steps' failures led to an exception."""

from __future__ import annotations

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
    keys: set[str] = set()
    seen: set[int] = set()
    open_ends: list[BaseException | None] = [exception]
    while open_ends:
        link = open_ends.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        origin = getattr(link, _ORIGIN, None)
        if origin is not None and origin[0] == token:
            keys.add(origin[1])
        open_ends += [link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            open_ends += cast(BaseExceptionGroup[BaseException], link).exceptions
    return tuple(sorted(keys))
