"""An exception as a record, and back.

Live and replayed failures are alike: what a step raises is always the exception rebuilt from its record, of the same
class when that is an `Exception` already imported here which its arguments rebuild, else `StepFailed`. Nothing is ever
imported because a row says so.
"""

from __future__ import annotations

import builtins
import sys
import traceback
from typing import Any, Final, cast

from msgspec import UNSET, Raw

from durable.codecs import Codec
from durable.errors import DurableError, StepFailed
from durable.snapshot import ErrorRecord

__all__ = ["from_record", "to_record"]

_MAX_TEXT: Final = 8 * 1024
_MAX_DEPTH: Final = 8


def to_record(exception: BaseException, codec: Codec, *, _depth: int = 0) -> ErrorRecord:
    """The record of any exception whatever: a run is never lost because its *error* could not be stored."""
    members = _members(exception)
    cause = exception.__cause__
    deeper = _depth < _MAX_DEPTH
    return ErrorRecord(
        type=_type_name(type(exception)),
        message=_text(exception),
        args=_arguments(exception, codec),
        notes=tuple(_clean(note) for note in getattr(exception, "__notes__", None) or () if isinstance(note, str)),
        cause=to_record(cause, codec, _depth=_depth + 1) if cause is not None and deeper else None,
        members=tuple(to_record(member, codec, _depth=_depth + 1) for member in members) if deeper else (),
        traceback=_traceback(exception) if _depth == 0 else "",
    )


def from_record(record: ErrorRecord, codec: Codec, *, run_id: str, where: str) -> Exception:
    """A new exception as the record tells: class, arguments, notes, cause and members."""
    exception = _rebuilt(record, codec, run_id, where)
    if exception is None:
        exception = StepFailed(record.type.replace(":", "."), record.message, record.traceback)
    if record.notes:
        exception.__notes__ = list(record.notes)
    if record.cause is not None:
        exception.__cause__ = from_record(record.cause, codec, run_id=run_id, where=where)
    return exception


def _is_group(class_: type[Any]) -> bool:
    return issubclass(class_, ExceptionGroup)


def _members(exception: BaseException) -> tuple[BaseException, ...]:
    if isinstance(exception, BaseExceptionGroup):
        return cast(BaseExceptionGroup[BaseException], exception).exceptions
    return ()


def _rebuilt(record: ErrorRecord, codec: Codec, run_id: str, where: str) -> Exception | None:
    class_ = _imported_class(record.type)
    if class_ is None:
        return None
    try:
        if _is_group(class_):
            members = [from_record(member, codec, run_id=run_id, where=where) for member in record.members]
            exception = cast(Any, class_)(record.message, members)
        elif record.args is UNSET:
            return None
        else:
            arguments = codec.decode(bytes(record.args), run_id=run_id, where=where)
            exception = class_(*arguments)
            if _text(exception) != record.message:
                return None
    except Exception:  # a constructor of the user's may raise anything; then the class does not rebuild
        return None
    return exception if type(exception) is class_ else None


def _imported_class(name: str) -> type[Exception] | None:
    module_name, _, qualname = name.partition(":")
    found: Any = builtins if module_name == "builtins" else sys.modules.get(module_name)
    for part in qualname.split("."):
        found = vars(found).get(part) if isinstance(found, type) or hasattr(found, "__dict__") else None
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return None


def _type_name(class_: type) -> str:
    return f"{class_.__module__}:{class_.__qualname__}"


def _arguments(exception: BaseException, codec: Codec) -> Any:
    if isinstance(exception, BaseExceptionGroup):
        return UNSET
    try:
        _, arguments, *state = cast(tuple[Any, ...], exception.__reduce__())
        if (
            state
            and set(state[0] or ()) - {"__notes__", "__durable_origin__"}
            and not isinstance(exception, DurableError)
        ):
            return UNSET  # what it carries besides its arguments would be lost: StepFailed says so
        text = codec.encode(list(arguments), what="the arguments of an exception")
    except Exception:
        return UNSET
    return Raw(text) if len(text) <= _MAX_TEXT else UNSET


def _text(exception: BaseException) -> str:
    try:
        text = str(getattr(exception, "message", "") if _members(exception) else exception)
    except Exception:
        text = f"<{type(exception).__name__} whose text cannot be made>"
    return _clean(text)


def _traceback(exception: BaseException) -> str:
    try:
        return _clean("".join(traceback.format_exception(exception, chain=False)), keep_end=True)
    except Exception:
        return ""


def _clean(text: str, *, keep_end: bool = False) -> str:
    """A text that PostgreSQL takes, of bounded length."""
    text = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if len(text) <= _MAX_TEXT:
        return text
    return "…" + text[-_MAX_TEXT:] if keep_end else text[:_MAX_TEXT] + "…"
