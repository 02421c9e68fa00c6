"""Python values as JSON text and back: only what comes back as it was.

Values take one road, live and replayed: encode, store, decode. So a value that does not survive is refused when its step
returns, not found at the first crash.
"""

from __future__ import annotations

import hashlib
import marshal
import math
from collections.abc import Iterator
from typing import Any, Final, Protocol

import msgspec

from durable.errors import UnreadableRecord, UnstorableValue

__all__ = ["Codec", "JsonCodec"]


class Codec(Protocol):
    """How values are written. All three are pure, and called from any thread."""

    def encode(self, value: Any, *, what: str) -> bytes:
        """The JSON of a value, in UTF-8; `UnstorableValue` naming `what` and the path when it could not come back."""
        ...

    def decode(self, text: bytes, *, run_id: str, where: str) -> Any:
        """A new copy of the value that was encoded; `UnreadableRecord` when this is not the JSON of one."""
        ...

    def fingerprint(self, value: Any, *, what: str) -> str:
        """A short text, equal for equal values whatever the order of their dicts; `UnstorableValue` as for `encode`."""
        ...


class JsonCodec:
    """JSON-native values: None, bool, int, finite float, str, and lists and dicts (with string keys) of them."""

    def encode(self, value: Any, *, what: str) -> bytes:
        """Encode, decode and compare: `marshal` tells types and order apart, where `==` calls 1, 1.0 and True equal."""
        text = b""
        try:
            text = _encode(value)
            plain = b"\\u0000" not in text and not _perhaps_deep(text)
            if plain and marshal.dumps(value, 2) == marshal.dumps(_decode(text), 2):
                return text
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError, OverflowError):
            pass
        # Either it is unstorable, and the search says where, or its text merely looks as if it were.
        for path, problem in _problems(value):
            raise UnstorableValue(what, path, problem)
        if not text:
            raise UnstorableValue(what, "$", "it has no JSON form")
        return text

    def decode(self, text: bytes, *, run_id: str, where: str) -> Any:
        """Decode JSON that `encode` wrote."""
        try:
            return _decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise UnreadableRecord(run_id, where, "it is not JSON") from None

    def fingerprint(self, value: Any, *, what: str) -> str:
        """64 bits of BLAKE2 over the JSON with sorted keys: arguments that change by accident differ by far."""
        try:
            text = _encode_sorted(value)
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError, OverflowError):
            for path, problem in _problems(value):
                raise UnstorableValue(what, path, problem, _USE_A_THUNK) from None
            raise UnstorableValue(what, "$", "it has no JSON form", _USE_A_THUNK) from None
        return hashlib.blake2b(text, digest_size=8).hexdigest()


_USE_A_THUNK = "If the argument need not be watched for changes, pass a thunk instead: step(name, lambda: fn(arg))."
_MAX_DEPTH: Final = 200  # decoding shares the Python stack: what is stored must be readable from deeper down
_MAX_INT_BITS: Final = 13_000  # Python reads at most 4,300 digits
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_encode: Final = msgspec.json.Encoder().encode
_encode_sorted: Final = msgspec.json.Encoder(order="deterministic").encode
_decode: Final = msgspec.json.Decoder().decode


def _perhaps_deep(text: bytes) -> bool:
    """Whether a JSON text may be nested too deep: certainly not, when its brackets cancel out in a few rounds."""
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


def _problems(value: Any, path: str = "$", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Where a value is not JSON-native, depth first."""
    if depth > _MAX_DEPTH:
        yield "$" + "…", f"it is nested more than {_MAX_DEPTH} levels deep (or contains itself)"
        return
    kind: Any = type(value)  # pyright: ignore[reportUnknownVariableType]  # looked at by itself: narrowing would make the items' types unknown
    if value is None or kind is bool:
        return
    if kind is int:
        if value.bit_length() > _MAX_INT_BITS:
            yield path, f"an int has more than {_MAX_INT_BITS} bits"
        return
    if kind is float:
        if not math.isfinite(value):
            yield path, "JSON has no NaN and no infinities"
    elif kind is str:
        yield from _text_problems(value, path)
    elif kind is list:
        for index, item in enumerate(value):
            yield from _problems(item, f"{path}[{index}]", depth + 1)
    elif kind is dict:
        for key, item in value.items():
            if type(key) is str:
                yield from _text_problems(key, f"the keys of {path}")
                yield from _problems(item, f"{path}.{key}" if key.isidentifier() else f"{path}[…]", depth + 1)
            else:
                yield path, f"a dict key is of type {type(key).__name__}, and JSON keys are strings"
    else:
        yield path, f"a value of type {type(value).__module__}.{type(value).__qualname__} would not come back as it is"


def _text_problems(text: str, path: str) -> Iterator[tuple[str, str]]:
    if "\0" in text:
        yield path, "a string contains a NUL character, which PostgreSQL cannot store"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            yield path, "a string contains a lone surrogate, which is not text"
