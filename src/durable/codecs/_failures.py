"""A step's failure: an exception as a record, and back.

Live and replayed failures are alike: what a step raises is always the exception rebuilt from its record. It is of the
same class where that is an `Exception` already imported here, and its arguments and what it carries besides are plain
enough to give an equal one; else it is `StepFailed`. Nothing is imported, and no constructor called, because a row says
so.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType, structs

from durable._common.boundary import shorten
from durable.codecs import Codec, JsonCodec
from durable.codecs._exceptions import Parts, bases_of, put_together, take_apart
from durable.codecs._names import find_class, name_of, own_name
from durable.errors import StepFailed, UnreadableRecord
from durable.records import ErrorRecord

_MAX_TEXT: Final = 8 * 1024  # characters of a message, note or traceback
_MAX_STATE: Final = 64 * 1024  # bytes of JSON, of the arguments and of what it carries besides
_MAX_BASES: Final = 20
_MAX_DEPTH: Final = 8  # of causes and groups: a cause may be its own
_MAX_RECORDS: Final = 100  # of one failure, members and causes together

_json: Final = JsonCodec()
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(ErrorRecord).decode


def to_record(exception: BaseException, codec: Codec, *, note: str = "") -> ErrorRecord:
    """The record of any exception whatever: no run is lost because its *error* could not be stored.

    `note` is added to its notes in the record. Nothing is set on the exception itself, and no attribute of its class is
    called.

    Under another codec than JSON's all but the class's name goes through it: a message may say as much as a value.
    """
    is_json = codec.name == JsonCodec.name
    records = codec if is_json else _json
    try:
        record = _with_note(_Recorder(records).record(exception), note)
    except Exception:
        try:
            _Recorder(records).record(exception)
        except Exception:  # its class raises, whatever is asked of it
            record = _with_note(ErrorRecord(type=_bare_class_name(type(exception)), message=_UNSEEN), note)
        else:  # it works: the first exception was foreign to it, such as a signal handler's
            raise
    if is_json:
        return record
    try:
        sealed = codec.encode(_encode(record).decode(), what="an exception")
    except Exception:  # a codec of the user's may raise anything; then its class is all that may be shown
        return ErrorRecord(type=record.type, message=_UNTOLD)
    return ErrorRecord(type=record.type, message="", sealed=Raw(sealed))


def from_record(record: ErrorRecord, codec: Codec, *, run_id: str, where: str) -> Exception:
    """A new exception with the record's class, arguments, notes, cause and members; else `StepFailed`."""
    if record.sealed is not UNSET:
        text = codec.decode(bytes(record.sealed), run_id=run_id, where=where)
        try:
            record = _decode(text)
        except (msgspec.MsgspecError, UnicodeError, TypeError, RecursionError):
            raise UnreadableRecord(run_id, where, "what its codec gives is not an exception's record") from None
        codec = _json
    return _to_exception(record, codec, run_id, where)


def _with_note(record: ErrorRecord, note: str) -> ErrorRecord:
    return structs.replace(record, notes=(*record.notes, note)) if note else record


_UNSEEN: Final = "(its class does not let anybody look at it)"
_UNTOLD: Final = "(the store's codec could not write its text)"


class _Recorder:
    """Makes the records of one failure: so many and no more, however its causes and groups refer to each other."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._left = _MAX_RECORDS

    def record(self, exception: BaseException, depth: int = 0) -> ErrorRecord:
        self._left -= 1
        members = _members(exception) if depth < _MAX_DEPTH else ()
        kept = [self.record(member, depth + 1) for member in members if self._left > 0]
        notes = [_clean(note) for note in _notes(exception)[:_MAX_RECORDS]]
        if len(kept) < len(members):
            notes.append(f"{len(members) - len(kept):,} more of its {len(members):,} exceptions were not stored")
        cause = exception.__cause__ if depth < _MAX_DEPTH and self._left > 0 else None
        kind = type(exception)
        args, state = _encode_parts(exception, self._codec)
        return ErrorRecord(
            type=_class_name(kind),
            message=_text(exception),
            args=args,
            state=state,
            bases=tuple(_class_name(base) for base in bases_of(kind))[:_MAX_BASES],
            notes=tuple(notes),
            cause=None if cause is None else self.record(cause, depth + 1),
            members=tuple(kept),
            traceback=_traceback(exception) if depth == 0 else "",
        )


def _to_exception(record: ErrorRecord, codec: Codec, run_id: str, where: str) -> Exception:
    members = [_to_exception(member, codec, run_id, where) for member in record.members]
    state: dict[str, Any] = {}
    if record.state is not UNSET:
        state = codec.decode(bytes(record.state), run_id=run_id, where=where)
    exception = _rebuild(record, members, state, codec, run_id, where)
    if exception is None:
        exception = StepFailed(
            type=record.type.replace(":", "."),
            message=record.message,
            remote_traceback=record.traceback,
            attributes=state,
            bases=_names_of_bases(record),
        )
    # As attributes of any exception, whatever its class says to being changed.
    if record.notes:
        BaseException.__setattr__(exception, "__notes__", list(record.notes))
    if record.cause is not None:
        BaseException.__setattr__(exception, "__cause__", _to_exception(record.cause, codec, run_id, where))
    return exception


def add_note(exception: BaseException, note: str) -> None:
    _set(exception, "__notes__", [*_notes(exception), note])


def traceback_of(exception: BaseException) -> TracebackType | None:
    """An exception's frames, whatever its class says to being asked."""
    frames: TracebackType | None = _frames(exception)
    return frames


_frames: Final = vars(BaseException)["__traceback__"].__get__
# Past what the exception's class makes of assignments: a frozen data class refuses them.
_set: Final = BaseException.__setattr__


def _names_of_bases(record: ErrorRecord) -> tuple[str, ...]:
    """The dotted names of its bases, recorded and current: the class may have been renamed since, with an alias."""
    class_ = _find_exception_class(record.type)
    now = () if class_ is None else tuple(own_name(one) for one in (class_, *bases_of(class_)))
    return tuple(dict.fromkeys(name.replace(":", ".") for name in record.bases + now))


def _rebuild(
    record: ErrorRecord, members: Sequence[BaseException], state: Any, codec: Codec, run_id: str, where: str
) -> Exception | None:
    class_ = _find_exception_class(record.type)
    if class_ is None or record.args is UNSET:
        return None
    try:
        args = codec.decode(bytes(record.args), run_id=run_id, where=where)
        parts = Parts((*args, members) if _is_group(class_) else tuple(args), state)
        made = (one for one in put_together(class_, parts) if type(one) is class_ and _text(one) == record.message)
        return next(made, None)
    except Exception:  # the class has changed
        return None


def _encode_parts(exception: BaseException, codec: Codec) -> tuple[Raw | UnsetType, Raw | UnsetType]:
    """The JSON of arguments and state where these give an equal exception; else that of the plain part of the state."""
    state: dict[str, Any] = {}
    try:
        for parts in take_apart(exception):
            state = {**parts.state, **state}
            texts = _try_encode(exception, parts, codec)
            if texts is not None and _is_rebuilt_alike(exception, texts, codec):
                return texts
    except Exception:  # __reduce__ of the user's
        state = dict(state)
    return UNSET, _encode_plain_state(state, codec)


def _try_encode(exception: BaseException, parts: Parts, codec: Codec) -> tuple[Raw, Raw | UnsetType] | None:
    args = parts.args[:1] if _is_group(type(exception)) else parts.args
    if len(args) == 1 and type(args[0]) is str:
        args = (_clean(args[0]),)  # a message, which is stored truncated too: its class is worth more
    try:
        text = codec.encode(list(args), what="the arguments of an exception")
        state = codec.encode(parts.state, what="what an exception carries") if parts.state else b""
    except Exception:  # an encoder may ask an object of the user's
        return None
    if max(len(text), len(state)) > _MAX_STATE:
        return None
    return Raw(text), Raw(state) if state else UNSET


def _is_rebuilt_alike(exception: BaseException, texts: tuple[Raw, Raw | UnsetType], codec: Codec) -> bool:
    """Whether the texts give an exception of the same class and text, which is written as the same texts again."""
    record = ErrorRecord(_class_name(type(exception)), _text(exception), args=texts[0], state=texts[1])
    try:
        state: dict[str, Any] = {} if texts[1] is UNSET else codec.decode(bytes(texts[1]), run_id="", where="")
        again = _rebuild(record, _members(exception), state, codec, "", "")
        return again is not None and any(_try_encode(again, parts, codec) == texts for parts in take_apart(again))
    except Exception:
        return False


def _encode_plain_state(state: dict[str, Any], codec: Codec) -> Raw | UnsetType:
    """The part of the state that can be stored, for `StepFailed.attributes`."""
    plain: dict[str, Any] = {}
    left = _MAX_STATE
    for name, item in state.items():
        try:
            left -= len(codec.encode({name: item}, what="an attribute of an exception"))
        except Exception:  # noqa: S112 -- what cannot be stored is left out: the rest may be what is asked for
            continue
        if left < 0:
            break
        plain[name] = item
    return Raw(codec.encode(plain, what="the attributes of an exception")) if plain else UNSET


def _is_group(class_: type[Any]) -> bool:
    return issubclass(class_, BaseExceptionGroup)


def _find_exception_class(name: str) -> type[Exception] | None:
    class_ = find_class(name, None)
    return class_ if class_ is not None and issubclass(class_, Exception) else None


def _class_name(class_: type) -> str:
    """The name of a class in records; it may be any text at all."""
    return _clean(name_of(class_))


def _bare_class_name(class_: type) -> str:
    """The name of a class whose metaclass raises when it is asked."""
    return _clean(f"{type.__getattribute__(class_, '__module__')}:{type.__getattribute__(class_, '__qualname__')}")


def _members(exception: BaseException) -> tuple[BaseException, ...]:
    if isinstance(exception, BaseExceptionGroup):
        return cast(BaseExceptionGroup[BaseException], exception).exceptions
    return ()


def _notes(exception: BaseException) -> list[str]:
    notes = BaseException.__getattribute__(exception, "__dict__").get("__notes__")
    if not isinstance(notes, list | tuple):
        return []
    return [note for note in cast(list[Any], notes) if isinstance(note, str)]


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
