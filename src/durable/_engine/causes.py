"""Which steps' failures led to an exception, and what is in flight when a step is called."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from inspect import CO_ASYNC_GENERATOR, CO_GENERATOR
from types import FrameType
from typing import Any, Final, TypeVar, cast

from msgspec import Struct

from durable.errors import Unwind

_ORIGIN: Final = "__durable_origin__"
_OWN: Final = "\0"  # begins the tag of an exception that no step of this execution raised: no key can
_E = TypeVar("_E", bound=BaseException)
_numbers: Final = itertools.count(1)


class InFlight(Struct, frozen=True, eq=False):
    """The exceptions that were raised since the workflow was entered and are being handled where a step is called."""

    #: What tells them apart: the key of the step that raised one, or a tag of its own.
    tags: frozenset[str]
    #: The task or thread that handles them.
    branch: object
    #: Whether a cancellation of that branch is among them.
    is_cancelled: bool = False
    #: The one among them that ends the process, or its work here.
    interruption: BaseException | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the steps whose exceptions are in flight, sorted."""
        return _keys(self.tags)


def joined(outer: InFlight | None, inner: InFlight | None) -> InFlight | None:
    """What is in flight where a step is called in the body of an item: there (`inner`), and where its map was called."""
    if outer is None or inner is None:
        return outer or inner
    tags, cancelled = outer.tags | inner.tags, outer.is_cancelled or inner.is_cancelled
    return InFlight(tags, inner.branch, cancelled, inner.interruption or outer.interruption)


def tag_origin(exception: _E, token: str, key: str) -> _E:
    """The exception, remembering that the step `key` of the execution `token` raised it."""
    # On the exception itself, so that only its user keeps it, and the frames of its traceback, alive.
    BaseException.__setattr__(exception, _ORIGIN, (token, key))
    return exception


def origin_keys(exception: BaseException, token: str) -> tuple[str, ...]:
    """The keys whose exceptions can be reached from this one through cause, context and group membership, sorted."""
    return _keys(tags_of(exception, token))


def origin_key(exception: BaseException, token: str) -> str:
    """The key of the step that raised this exception, or else one that it came of; empty when none did."""
    return next((tag for tag in _tags(exception, token) if not tag.startswith(_OWN)), "")


def tags_of(exception: BaseException, token: str) -> frozenset[str]:
    """The tags (see `InFlight`) of all exceptions that can be reached from this one, and were in flight at some call."""
    return frozenset(_tags(exception, token))


def in_flight(
    exception: BaseException,
    before: BaseException | None,
    token: str,
    branch: object,
    *,
    cancellation: type[BaseException],
    is_cancelled: Callable[[], bool],
) -> InFlight | None:
    """What is in flight where `exception` is being handled; None if all of it is outside of the workflow (`before`).

    Classes of `cancellation` end a task's work and not the process. One that has been turned into an `Exception` (as a
    time-out does) is in flight no more, unless `is_cancelled()` says that its task is still asked to end.
    """
    known = {id(link) for link, _ in _linked(before, set())}
    tags, interruption, cancelled = set[str](), None, False
    for link, is_direct in _linked(exception, known):
        # A cancellation too may come to be the failure of a run: a time-out.
        if isinstance(link, Exception | cancellation):
            tag = _tag(link, token)
            if tag is None:
                tag_origin(link, "", tag := f"{_OWN}{next(_numbers)}")
            tags.add(tag)
        if isinstance(link, cancellation):
            cancelled = cancelled or is_direct or is_cancelled()
        elif not (isinstance(link, Exception | Unwind | BaseExceptionGroup) or _closes_a_generator(link)):
            interruption = interruption or link
    if not tags and not cancelled and interruption is None:
        return None
    return InFlight(frozenset(tags), branch, cancelled, interruption)


def links(exception: BaseException) -> Iterator[BaseException]:
    """The exception, and what can be reached from it through cause, context and group membership, the nearest first."""
    return (link for link, _ in _linked(exception, set()))


def is_handled_around(frame: FrameType | None, exception: BaseException) -> bool:
    """Whether an exception is being handled by one of the callers of this frame: it has got as far as there."""
    trace, caller = exception.__traceback__, None if frame is None else frame.f_back
    while caller is not None and trace is not None:
        if caller is trace.tb_frame:
            return True
        caller = caller.f_back
    return False


def _tags(exception: BaseException, token: str) -> Iterator[str]:
    """The nearest first."""
    tags = (_tag(link, token) for link in links(exception))
    return (tag for tag in tags if tag is not None)


def _linked(exception: BaseException | None, seen: set[int]) -> Iterator[tuple[BaseException, bool]]:
    """What can be reached from an exception and was not seen before, the nearest first, and whether by membership alone."""
    open_ends: deque[tuple[BaseException | None, bool]] = deque([(exception, True)])
    while open_ends:
        link, is_direct = open_ends.popleft()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link, is_direct
        open_ends += [(link.__cause__, False), (link.__context__, False)]
        if isinstance(link, BaseExceptionGroup):
            members = cast(BaseExceptionGroup[BaseException], link).exceptions
            open_ends += [(member, is_direct) for member in members]


def _tag(exception: BaseException, token: str) -> str | None:
    # Past whatever the exception's class makes of attributes that are not there.
    state: dict[str, Any] = BaseException.__getattribute__(exception, "__dict__")
    origin: tuple[str, str] | None = state.get(_ORIGIN)
    if origin is None:
        return None
    of, key = origin
    return key if of in (token, "") else f"{_OWN}{of}:{key}"


def _keys(tags: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(tag for tag in tags if not tag.startswith(_OWN)))


def _closes_a_generator(exception: BaseException) -> bool:
    """Whether this is how a generator is closed that is not needed any more: nothing else is being left."""
    trace = exception.__traceback__
    if not isinstance(exception, GeneratorExit) or trace is None or trace.tb_next is not None:
        return False
    return bool(trace.tb_frame.f_code.co_flags & (CO_GENERATOR | CO_ASYNC_GENERATOR))
