"""One codec that writes, and all that read: each record names the one that wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from durable.codecs._json import JsonCodec
from durable.codecs._tags import CODEC_NAME, TAG_IN_TEXT, missing_codec
from durable.codecs.protocol import Codec
from durable.errors import DurableError, InvalidArgument, UnreadableRecord, UnstorableValue


class _Sealed(Struct, tag_field="$type", tag="codec"):
    """What another codec than JSON's wrote: `{"$type": "codec", "name": …, "value": …}`."""

    name: str
    value: Raw


_JSON: Final = JsonCodec()
_seal: Final = msgspec.json.Encoder().encode
_unseal: Final = msgspec.json.Decoder(_Sealed).decode
_check: Final = msgspec.json.Decoder(Any).decode


class CodecSet:
    """The codecs of a store: the first writes, all read, and plain JSON is always read.

    So old records stay readable when a store changes to another codec. What goes wrong inside of a codec is reported by
    its name and the type of the error only, since the error's text might quote a value.

    Raises `InvalidArgument` for what is not a codec, or for two of one name.
    """

    def __init__(self, codecs: Sequence[Codec]) -> None:
        self._by_name: dict[str, Codec] = {}
        for codec in codecs:
            verbs = ("encode", "decode", "fingerprint")
            if isinstance(codec, type) or any(not callable(getattr(codec, verb, None)) for verb in verbs):
                raise InvalidArgument(f"codec= takes codecs, like JsonCodec(); this is a {type(codec).__name__}")
            name = getattr(codec, "name", None)
            if not isinstance(name, str) or not CODEC_NAME.fullmatch(name):
                kind = type(codec).__name__
                raise InvalidArgument(f"a codec has a name of at most 40 letters, digits and ._+-, and {kind} has none")
            if name in self._by_name:
                raise InvalidArgument(f"two codecs are called {name!r}, and their records could not be told apart")
            self._by_name[name] = codec
        if not self._by_name:
            raise InvalidArgument("codec= needs at least one codec, like JsonCodec()")
        self._writer = next(iter(self._by_name.values()))
        self._json: Codec = self._by_name.get(JsonCodec.name) or JsonCodec()

    def __repr__(self) -> str:
        return f"<codecs {', '.join(self._by_name)}>"

    @property
    def name(self) -> str:
        """The name of the codec that writes."""
        return self._writer.name

    def encode(self, value: Any, *, what: str, annotation: Any = None) -> bytes:
        """What the first codec writes, with its name."""
        name = self.name
        try:
            text = self._writer.encode(value, what=what, annotation=annotation)
            if self._writer is self._json:
                return text
            _check(text)
            return _seal(_Sealed(name, Raw(text)))
        except DurableError:
            raise
        except Exception as problem:
            raise UnstorableValue(what, "$", f"the codec {name!r} failed with {type(problem).__name__}") from None

    def decode(self, text: bytes, *, run_id: str, where: str, annotation: Any = None) -> Any:
        """What the codec that wrote the text reads in it."""
        sealed = _try_unseal(text)
        if sealed is None:
            return self._json.decode(text, run_id=run_id, where=where, annotation=annotation)
        codec = self._by_name.get(sealed.name)
        if codec is None:
            raise UnreadableRecord(run_id, where, missing_codec(sealed.name))
        try:
            return codec.decode(bytes(sealed.value), run_id=run_id, where=where, annotation=annotation)
        except DurableError:
            raise
        except Exception as problem:
            told = f"its codec {sealed.name!r} failed with {type(problem).__name__}"
            raise UnreadableRecord(run_id, where, told) from None

    def check_promise(self, annotation: Any, *, what: str) -> None:
        """The first codec's check, where it has one."""
        checks = getattr(self._writer, "check_promise", None)
        if checks is not None:
            checks(annotation, what=what)

    def fingerprint(self, value: Any, *, what: str) -> str:
        """The first codec's fingerprint."""
        try:
            return self._writer.fingerprint(value, what=what)
        except DurableError:
            raise
        except Exception as problem:
            raise UnstorableValue(what, "$", f"the codec {self.name!r} failed with {type(problem).__name__}") from None


def _try_unseal(text: bytes) -> _Sealed | None:
    if TAG_IN_TEXT not in text[:32]:
        return None
    try:
        return _unseal(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def codec_of(store: object) -> Codec:
    """The codec of a store, or JSON's where it has none."""
    return getattr(store, "codec", None) or _JSON


def as_codec(codec: Codec | Sequence[Codec] | None) -> Codec:
    """The codec that the argument `codec=` of a store stands for; `InvalidArgument` for what is none."""
    if codec is None:
        return _JSON
    if isinstance(codec, JsonCodec):  # by far the most: nothing stands between
        return codec
    return CodecSet(list(codec) if isinstance(codec, list | tuple) else [codec])  # type: ignore[list-item]
