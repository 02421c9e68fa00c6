"""The default codec: typed JSON."""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final, cast

import msgspec

from durable._common.boundary import public
from durable.codecs._advice import DATA_CLASSES, its_type
from durable.codecs._annotations import find_mismatch
from durable.codecs._decoder import Decoder
from durable.codecs._encoder import Encoder
from durable.codecs._problems import DecodeError, Unencodable
from durable.codecs._promises import check_promise
from durable.codecs._tags import TAG_IN_TEXT
from durable.errors import InvalidArgument, UnreadableRecord, UnstorableValue

_MAX_BYTES: Final = 268_435_455 - 65_536  # what PostgreSQL takes in one JSON document, less what a record adds
_MAX_DEPTH: Final = 200  # decoding shares the Python stack: what is stored must be readable from deeper down
_USE_A_THUNK: Final = (
    "If the argument need not be watched for changes, pass a thunk instead: step(name, lambda: fn(arg))."
)
_SHALLOW: Final = 2 * _MAX_DEPTH  # bytes: what is nested too deep has more
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_NUL: Final = b"\\u0000"
_BACKSLASH, _DOLLAR = b"\\$"  # as numbers, which are looked for in a tenth of the time
_encode: Final = msgspec.json.Encoder().encode
_encode_sorted: Final = msgspec.json.Encoder(order="deterministic").encode
_decode: Final = msgspec.json.Decoder().decode
_UNLIKE_JSON = (TypeError, ValueError, RecursionError, msgspec.MsgspecError, OverflowError)


class JsonCodec:
    """JSON with tags where JSON alone would forget a type. See `docs/values.md` for what comes back.

    `max_payload` is the most bytes that one value may take as JSON; PostgreSQL's own limit is a little above 268
    million.
    """

    name = "json"

    @public("JsonCodec")
    def __init__(self, *, max_payload: int = 100 * 1024 * 1024) -> None:
        if type(max_payload) is not int or not 0 < max_payload <= _MAX_BYTES:
            raise InvalidArgument(f"max_payload must be a number of bytes from 1 to {_MAX_BYTES}, not {max_payload!r}")
        self.max_payload = max_payload
        self._small = min(max_payload, _SHALLOW)

    def __repr__(self) -> str:
        return f"JsonCodec(max_payload={self.max_payload})"

    def encode(self, value: Any, *, what: str, annotation: Any = None) -> bytes:
        """Encode, decode and compare: `marshal` tells types and order apart, where `==` calls 1, 1.0 and True equal."""
        if annotation is not None and (wrong := find_mismatch(value, annotation)):
            raise UnstorableValue(what, *wrong, "Correct the annotation, or return what it says.")
        try:
            native = marshal.dumps(value, 2)  # first, since it gives up at the first thing that JSON does not know
            text = _encode(value)
            if (
                (_BACKSLASH not in text or _NUL not in text)
                and (_DOLLAR not in text or TAG_IN_TEXT not in text)
                and (len(text) <= self._small or not (len(text) > self.max_payload or _may_be_deep(text)))
                and native == marshal.dumps(_decode(text), 2)
            ):
                return text
        except _UNLIKE_JSON:
            pass
        return self._encode_tagged(value, what, annotation)

    def check_promise(self, annotation: Any, *, what: str) -> None:
        """Raise `UnstorableValue` for a return annotation of which no value can be stored, before the body is called."""
        try:
            check_promise(annotation)
        except Unencodable as unencodable:
            raise UnstorableValue(what, "$", unencodable.problem, f"Nothing was called. {unencodable.advice}") from None
        except TypeError:  # it cannot be hashed
            return

    def decode(self, text: bytes, *, run_id: str, where: str, annotation: Any = None) -> Any:
        """Decode what `encode` wrote."""
        try:
            tree = _decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError):
            raise UnreadableRecord(run_id, where, "it is not JSON") from None
        if _DOLLAR not in text or TAG_IN_TEXT not in text:
            return tree
        try:
            return Decoder(annotation).decode(tree)
        except DecodeError as problem:
            raise UnreadableRecord(run_id, where, str(problem)) from None
        except Exception as problem:  # whatever a record that was changed by hand may lead to
            raise UnreadableRecord(
                run_id, where, f"a tagged part is not of its kind ({_class_name(problem)})"
            ) from None

    def fingerprint(self, value: Any, *, what: str) -> str:
        """64 bits of BLAKE2 over the JSON with sorted keys, as hexadecimal text: enough for accidental changes.

        A dict that looks like a tag is written with tags, like everything that JSON does not know. Of a data class only
        the fields that differ from their defaults count, so that a field with a default can be added, or removed again.
        """
        try:
            text = _encode_sorted(value)
            if (_DOLLAR in text and TAG_IN_TEXT in text) or _decode(text) != value:
                text = b""
        except Exception:  # comparing may ask an object of the user's
            text = b""
        return hashlib.blake2b(text or self._canonical_text(value, what), digest_size=8).hexdigest()

    def _encode_tagged(self, value: Any, what: str, annotation: Any) -> bytes:
        """The JSON with tags, read back and written once more for comparison."""
        try:
            tree, text = _tree_and_text(value, annotation)
            if _may_be_deep(text) and _depth(tree) > _MAX_DEPTH:
                raise RecursionError
            if len(text) > self.max_payload:
                raise Unencodable(
                    f"its JSON has {len(text):,} bytes, and max_payload is {self.max_payload:,}",
                    "Keep it elsewhere and return where, or raise it: postgres(url, codec=JsonCodec(max_payload=...)).",
                )
            if (reason := _why_unlike(text, annotation)) is not None:
                problem = f"a value of type {its_type(value)} would not come back as it is{reason}"
                raise Unencodable(problem, f"Return plain data, or {DATA_CLASSES} that is made of its fields.")
        except Unencodable as unencodable:
            raise UnstorableValue(what, unencodable.path, unencodable.problem, unencodable.advice) from None
        except RecursionError:
            problem = f"it is nested more than {_MAX_DEPTH} levels deep, or contains itself"
            raise UnstorableValue(
                what, "$…", problem, "Return it flat: a list of parts that name each other."
            ) from None
        return text

    def _canonical_text(self, value: Any, what: str) -> bytes:
        try:
            tree = Encoder(canonical=True).encode(value)
            try:
                return _encode_sorted(tree)
            except _UNLIKE_JSON:
                Encoder(canonical=True, careful=True).encode(value)
                raise
        except Unencodable as unencodable:
            raise UnstorableValue(what, unencodable.path, unencodable.problem, _USE_A_THUNK) from None
        except Exception as problem:
            raise UnstorableValue(what, "$", f"it has no JSON form ({_class_name(problem)})", _USE_A_THUNK) from None


def check_plain(value: Any, *, what: str) -> None:
    """Raise `UnstorableValue` unless a value is plain JSON, without a tag."""
    if TAG_IN_TEXT in JsonCodec().encode(value, what=what):
        raise UnstorableValue(what, "$", "it is for queries, and takes nothing but plain JSON (and no key $type)")


def _tree_and_text(value: Any, annotation: Any) -> tuple[Any, bytes]:
    """The tree of a value and its text. Each int and string is looked into only once one of them is known to be wrong."""
    try:
        tree = Encoder(annotation).encode(value)
        text = _encode(tree)
        if _NUL not in text:
            return tree, text
    except (Unencodable, RecursionError):
        raise
    except Exception as problem:
        Encoder(annotation, careful=True).encode(value)
        raise Unencodable(f"it has no JSON form ({_class_name(problem)})", "Return plain data.") from None
    Encoder(annotation, careful=True).encode(value)
    return tree, text


def _why_unlike(text: bytes, annotation: Any) -> str | None:
    """Why a text, read and written again, is not the same text, as far as that is known; None when it is."""
    try:
        again = _encode(Encoder(annotation).encode(Decoder(annotation).decode(_decode(text))))
    except RecursionError:
        raise
    except Exception as problem:
        return f" ({_class_name(problem)})"
    return None if again == text else ""


def _class_name(problem: Exception) -> str:
    return type(problem).__name__


def _may_be_deep(text: bytes) -> bool:
    """Whether a JSON text may be nested too deep: not if its brackets cancel out in a few rounds."""
    if text.count(b"[") + text.count(b"{") <= _MAX_DEPTH:
        return False
    brackets = text.translate(None, _NO_BRACKETS)
    for _ in range(_MAX_DEPTH):
        inner = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if not inner:
            return False
        if len(inner) == len(brackets):  # brackets inside strings
            return True
        brackets = inner
    return True


def _depth(tree: Any) -> int:
    """How many levels a tree has."""
    depth = -1
    level: list[Any] = [tree]
    while level:
        depth += 1
        level = list(chain.from_iterable(map(_children, level)))
    return depth


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return cast(dict[str, Any], node).values()
    return cast(list[Any], node) if isinstance(node, list | tuple) else ()
