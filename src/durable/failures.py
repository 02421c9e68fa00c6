"""An exception as a record, and back.

Live and replayed failures are alike: what a step raises is always the exception rebuilt from its record, of the same
class when that is an `Exception` already imported here which its arguments rebuild, else `StepFailed`. Nothing is ever
imported because a row says so.
"""

from __future__ import annotations

import builtins
import sys
import traceback
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
from msgspec import UNSET, Raw

from durable._border import shorten
from durable.codecs import Codec, JsonCodec
from durable.errors import DurableError, StepFailed, UnreadableRecord
from durable.snapshot import ErrorRecord

__all__ = ["from_record", "to_record"]

_MAX_TEXT: Final = 8 * 1024  # characters of a message, note or traceback
_MAX_ARGUMENTS: Final = 64 * 1024  # bytes of JSON
_MAX_DEPTH: Final = 8  # of causes and groups: a cause may be its own
_MAX_RECORDS: Final = 100  # of one failure, members and causes together

_json: Final = JsonCodec()
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(ErrorRecord).decode


def to_record(exception: BaseException, codec: Codec) -> ErrorRecord:
    """The record of any exception whatever: a run is never lost because its *error* could not be stored.

    Under another codec than JSON's all but the class's name goes through it: a message may say as much as a value.
    """
    if codec.name == JsonCodec.name:
        return _Records(codec).of(exception)
    record = _Records(_json).of(exception)
    try:
        sealed = codec.encode(_encode(record).decode(), what="an exception")
    except Exception:  # a codec of the user's may raise anything; then its class is all that may be shown
        return ErrorRecord(type=record.type, message=_UNTOLD)
    return ErrorRecord(type=record.type, message="", sealed=Raw(sealed))


def from_record(record: ErrorRecord, codec: Codec, *, run_id: str, where: str) -> Exception:
    """A new exception as the record tells: class, arguments, notes, cause and members."""
    if record.sealed is not UNSET:
        text = codec.decode(bytes(record.sealed), run_id=run_id, where=where)
        try:
            record = _decode(text)
        except (msgspec.MsgspecError, UnicodeError, TypeError, RecursionError):
            raise UnreadableRecord(run_id, where, "what its codec gives is not an exception's record") from None
        codec = _json
    return _raised(record, codec, run_id, where)


_UNTOLD: Final = "(the store's codec could not write its text)"


class _Records:
    """The records of one failure: so many and no more, however its causes and groups hang together."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._left = _MAX_RECORDS

    def of(self, exception: BaseException, depth: int = 0) -> ErrorRecord:
        self._left -= 1
        members = _members(exception) if depth < _MAX_DEPTH else ()
        kept = [self.of(member, depth + 1) for member in members if self._left > 0]
        notes = [_clean(note) for note in _notes(exception)[:_MAX_RECORDS]]
        if len(kept) < len(members):
            notes.append(f"{len(members) - len(kept):,} more of its {len(members):,} exceptions were not stored")
        cause = exception.__cause__ if depth < _MAX_DEPTH and self._left > 0 else None
        return ErrorRecord(
            type=_type_name(type(exception)),
            message=_text(exception),
            args=_arguments(exception, self._codec),
            notes=tuple(notes),
            cause=None if cause is None else self.of(cause, depth + 1),
            members=tuple(kept),
            traceback=_traceback(exception) if depth == 0 else "",
        )


def _raised(record: ErrorRecord, codec: Codec, run_id: str, where: str) -> Exception:
    exception = _rebuilt(record, codec, run_id, where)
    if exception is None:
        exception = StepFailed(record.type.replace(":", "."), record.message, record.traceback)
    if record.notes:
        exception.__notes__ = list(record.notes)
    if record.cause is not None:
        exception.__cause__ = _raised(record.cause, codec, run_id, where)
    return exception


def _rebuilt(record: ErrorRecord, codec: Codec, run_id: str, where: str) -> Exception | None:
    class_ = _imported_class(record.type)
    if class_ is None:
        return None
    try:
        if _is_group(class_):
            members = [_raised(member, codec, run_id, where) for member in record.members]
            exception = _grouped(class_, record.message, members)
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


def _is_group(class_: type[Any]) -> bool:
    return issubclass(class_, ExceptionGroup)


def _grouped(class_: Callable[..., Exception], message: str, members: list[Exception]) -> Exception:
    return class_(message, members)


def _imported_class(name: str) -> type[Exception] | None:
    module_name, _, qualname = name.partition(":")
    found: Any = builtins if module_name == "builtins" else sys.modules.get(module_name)
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    if isinstance(found, type) and issubclass(found, Exception):
        return found
    return None


def _type_name(class_: type) -> str:
    return _clean(f"{class_.__module__}:{class_.__qualname__}")


def _members(exception: BaseException) -> tuple[BaseException, ...]:
    if isinstance(exception, BaseExceptionGroup):
        return cast(BaseExceptionGroup[BaseException], exception).exceptions
    return ()


def _notes(exception: BaseException) -> list[str]:
    notes = getattr(exception, "__notes__", None)
    if not isinstance(notes, list | tuple):
        return []
    return [note for note in cast(list[Any], notes) if isinstance(note, str)]


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
        if len(arguments) == 1 and type(arguments[0]) is str:
            arguments = (_clean(arguments[0]),)  # a message, which is stored truncated too: its class is worth more
        text = codec.encode(list(arguments), what="the arguments of an exception")
    except Exception:
        return UNSET
    return Raw(text) if len(text) <= _MAX_ARGUMENTS else UNSET


def _text(exception: BaseException) -> str:
    try:
        text = str(getattr(exception, "message", "") if _members(exception) else exception)
    except Exception:
        text = f"<{type(exception).__name__} whose text cannot be made>"
    return _clean(text)


def _traceback(exception: BaseException) -> str:
    shorten(exception)
    try:
        return _clean("".join(traceback.format_exception(exception, chain=False)), keep_end=True)
    except Exception:
        return ""


def _clean(text: str, *, keep_end: bool = False) -> str:
    """A text that PostgreSQL takes, of bounded length."""
    shortened = text[-_MAX_TEXT:] if keep_end else text[: _MAX_TEXT + 1]
    clean = shortened.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if len(text) == len(shortened) and len(clean) <= _MAX_TEXT:
        return clean
    return "…" + clean[-_MAX_TEXT:] if keep_end else clean[:_MAX_TEXT] + "…"
