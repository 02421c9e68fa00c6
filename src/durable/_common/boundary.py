"""Where users' code calls ours: how a call that does not fit is answered, and how much of our code a traceback shows.

A traceback that leaves through here shows the users' own lines, and one line of ours wherever theirs call it. A mistake of
ours keeps every line, which a report of it needs.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import sysconfig
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, TypeVar, cast

from durable.errors import DurableError, InvalidArgument

_F = TypeVar("_F", bound=Callable[..., Any])
_C = TypeVar("_C", bound=type)

_OURS: Final = str(Path(__file__).parent.parent) + os.sep
_STDLIB: Final = sysconfig.get_path("stdlib") + os.sep
# May lie in the stdlib's.
_INSTALLED: Final = tuple(sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib"))
_MAX_LINKS: Final = 100  # exceptions of one chain

_callers: Final = set[CodeType]()  # of ours, from which users' functions are called


def calls_out(fn: _F) -> _F:
    """Mark a function of ours that calls one of the user's, or raises what one has raised: the exception is the user's."""
    _callers.add(cast(Any, fn).__code__)
    return fn


def public(name: str) -> Callable[[_F], _F]:
    """Mark a function, or a coroutine function, as one that users call, by this `name`: see the module."""

    def decorate(fn: _F) -> _F:
        calls_out(fn)
        if inspect.iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                try:
                    return await fn(*args, **kwargs)
                except Exception as problem:
                    if isinstance(problem, TypeError) and _has_not_begun(problem):
                        raise _explain_misfit(name, fn, args, kwargs, problem) from None
                    _drop_this_frame(problem)
                    raise

            return cast(_F, call_async)

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return fn(*args, **kwargs)
            except Exception as problem:
                if isinstance(problem, TypeError) and _has_not_begun(problem):
                    raise _explain_misfit(name, fn, args, kwargs, problem) from None
                _drop_this_frame(problem)
                raise

        return cast(_F, call)

    return decorate


def public_verbs(name: str, *verbs: str) -> Callable[[_C], _C]:
    """Apply `public` to these methods of a class."""

    def decorate(class_: _C) -> _C:
        for verb in verbs:
            setattr(class_, verb, public(f"{name}.{verb}")(vars(class_)[verb]))
        return class_

    return decorate


def shorten(exception: BaseException) -> None:
    """Cut our lines out of the tracebacks of an exception, and of what led to it, but for those that a user needs to see.

    The first line is kept, so call this in the frame that is to be the border. A `KeyboardInterrupt` and its like stay as they
    are: they tell where they struck. A cancellation that led to an error, such as a `TimeoutError`, is cut like the error.
    """
    seen: set[int] = set()
    links: list[tuple[BaseException, bool]] = [(exception, False)]
    while links and len(seen) < _MAX_LINKS:
        link, translated = links.pop()
        if id(link) in seen or not isinstance(link, Exception | CancelledError):
            continue
        seen.add(id(link))
        ours = translated or isinstance(link, DurableError)
        _cut(link, ours=ours)
        if isinstance(link, BaseExceptionGroup):
            links += [(member, False) for member in cast(BaseExceptionGroup[BaseException], link).exceptions]
        if link.__cause__ is not None:
            links.append((link.__cause__, ours))
        elif (context := link.__context__) is not None and not link.__suppress_context__:
            if isinstance(link, DurableError) and _is_inner(context):
                link.__suppress_context__ = True  # how we noticed, which the message says better
            else:
                links.append((context, False))


def _cut(link: BaseException, *, ours: bool) -> None:
    entries = list(_entries(link.__traceback__))
    kept: list[TracebackType] = []
    at = 0
    while at < len(entries):
        if not _is_ours(entries[at].tb_frame):
            kept.append(entries[at])
            at += 1
            continue
        last = after = at  # of this stretch of ours, with the standard library's frames between two of them
        while after < len(entries) and (_is_ours(entries[after].tb_frame) or _is_stdlib(entries[after].tb_frame)):
            last = after if _is_ours(entries[after].tb_frame) else last
            after += 1
        if ours or _leads_out(entries[last:]):
            stretch = entries[at : last + 1]
            kept.append(next((one for one in stretch if one.tb_frame.f_code.co_filename != __file__), stretch[0]))
        else:
            kept += entries[at : last + 1]  # a mistake of ours
        at = after if ours and after == len(entries) else last + 1
    if len(kept) < len(entries):
        shortened: TracebackType | None = None
        for entry in reversed(kept):
            # Between two lines, where a signal's handler may raise, there is none.
            line = cast("int | None", entry.tb_lineno) or entry.tb_frame.f_code.co_firstlineno
            shortened = TracebackType(shortened, entry.tb_frame, entry.tb_lasti, line)
        BaseException.with_traceback(link, shortened)  # a class may take no attribute


def _leads_out(entries: list[TracebackType]) -> bool:
    """Whether the first of these, which is ours, called one of the user's functions, from where the exception came."""
    if entries[0].tb_frame.f_code in _callers:
        return True
    following = entries[1].tb_frame if len(entries) > 1 else None
    return (
        following is not None and not _is_stdlib(following) and not following.f_code.co_filename.startswith(_INSTALLED)
    )


def _drop_this_frame(problem: Exception) -> None:
    if problem.__traceback__ is not None and problem.__traceback__.tb_next is not None:
        BaseException.with_traceback(problem, problem.__traceback__.tb_next)
    shorten(problem)


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OURS)


def _is_stdlib(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith("<frozen ") or (name.startswith(_STDLIB) and not name.startswith(_INSTALLED))


def _is_inner(context: BaseException) -> bool:
    """Whether an exception was raised and handled in our own code, where the user's has no part in it."""
    frames = [entry.tb_frame for entry in _entries(context.__traceback__)]
    return bool(frames) and _is_ours(frames[0]) and not any(frame.f_code in _callers for frame in frames)


def _has_not_begun(problem: TypeError) -> bool:
    """Whether a call failed before the function's first line: its arguments do not fit."""
    return problem.__traceback__ is not None and problem.__traceback__.tb_next is None


def _explain_misfit(
    name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], problem: TypeError
) -> InvalidArgument:
    """What to write instead of a call that does not fit."""
    signature = inspect.signature(fn)
    given = tuple(signature.parameters.values())
    if given and given[0].name == "self":
        signature, args, given = signature.replace(parameters=given[1:]), args[1:], given[1:]
    names = {one.name for one in given if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY)}
    options = [one.name for one in given if one.kind is one.KEYWORD_ONLY or (one.name in names and not _is_needed(one))]
    options = options or [one.name for one in given if one.kind is one.POSITIONAL_OR_KEYWORD]
    shown = f"{name}({', '.join(_show(one) for one in given)})"
    try:
        bound = signature.bind_partial(*args, **{key: kwargs[key] for key in kwargs if key in names})
    except TypeError:  # too many, or one of them twice
        text = str(problem).partition("() ")[2] or str(problem)
        return InvalidArgument(f"{name}(...) {text}: it is called as {shown}")
    if unknown := [key for key in kwargs if key not in names]:
        function = bound.arguments.get("fn")
        named = "; ".join(_explain_unknown(name, key, options, bound.arguments, kwargs) for key in unknown[:3])
        listed = ", ".join(f"{option}=" for option in options) or "none"
        rest = (
            "" if function is None or not callable(function) else _explain_by_position(name, bound.arguments, unknown)
        )
        return InvalidArgument(f"{named}. {rest}The options of {name}(...) are {listed}.")
    missing = [one.name for one in given if _is_needed(one) and one.name not in bound.arguments]
    first = next(iter(bound.arguments.values()), None)
    order = "the name comes first, then the function; " if name.startswith("step") and callable(first) else ""
    return InvalidArgument(f"{name}(...) was called without {' and '.join(missing)}: {order}it is called as {shown}")


def _explain_unknown(name: str, key: str, options: list[str], given: dict[str, Any], kwargs: dict[str, Any]) -> str:
    if key not in _parameters_of(given.get("fn")):
        free = [option for option in options if option not in kwargs]
        if close := difflib.get_close_matches(key, free, n=1) or difflib.get_close_matches(key, options, n=1):
            return f"{name}(...) has no option {key!r}: did you mean {close[0]}=?"
    return f"{name}(...) has no option {key!r}"


def _explain_by_position(name: str, given: dict[str, Any], unknown: list[str]) -> str:
    """What to write where keywords were meant for the function that was given with them."""
    parameters, function = _parameters_of(given["fn"]), getattr(given["fn"], "__name__", "fn")
    meant = [key for key in unknown if key in parameters]
    if not name.startswith("step") or not (meant or "**" in parameters or {"args", "kwargs"} & set(unknown)):
        return ""
    if {"args", "kwargs"} & set(unknown):
        meant = sorted(parameters - {"**"}) or ["arg"]
    first, key = repr(given.get("name", "name")), (meant or unknown)[0]
    if name == "step.map":
        return f"Each item is the function's argument: {name}({first}, lambda item: {function}(item, {key}={key}), items). "
    return (
        f"A step's function is given its arguments by position, {name}({first}, {function}, {key}), or in a thunk, "
        f"{name}({first}, lambda: {function}({key}={key})). "
    )


def _parameters_of(fn: object) -> set[str]:
    """The names of a function's parameters; `**` among them where it takes any."""
    if not callable(fn):
        return set()
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {"**" if one.kind is one.VAR_KEYWORD else one.name for one in parameters}


def _is_needed(parameter: inspect.Parameter) -> bool:
    is_variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return not is_variable and parameter.default is parameter.empty


def _show(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    if parameter.kind is parameter.KEYWORD_ONLY:
        return f"{parameter.name}=…"
    return parameter.name
