"""The payloads of signals, as the types that workflows wait for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from durable._common.boundary import calls_out
from durable._engine.step_kinds import Listen
from durable.codecs import Codec, as_annotated, return_annotation
from durable.errors import SignalMismatch, UnreadableRecord

_pairs: Final = msgspec.json.Decoder(tuple[str, Raw])


@calls_out
def read_winner(
    text: bytes, branches: Mapping[str, Callable[[], Any]], codec: Codec, *, run_id: str, where: str
) -> tuple[str, Any]:
    """The name and the value of the branch that won, by the race's record."""
    try:
        name, value = _pairs.decode(text)
    except msgspec.MsgspecError as problem:
        raise UnreadableRecord(run_id, where, f"it is no name and value: {problem}") from None
    annotation = return_annotation(branches[name]) if name in branches else None
    return name, codec.decode(bytes(value), run_id=run_id, where=where, annotation=annotation)


@calls_out
def read_signal(text: bytes, kind: Listen, name: str, annotation: Any, codec: Codec, *, run_id: str) -> Any:
    """What a wait returns, by its record: the payload, or of a wait for several names the name and the payload.

    `annotation` is the type of it that the workflow waits for, None where it takes any; `SignalMismatch` where it is none.
    """
    if kind.names:
        named, payload = _pairs.decode(text)
        return named, codec.decode(bytes(payload), run_id=run_id, where=f"the payload of signal {named!r}")
    value = codec.decode(text, run_id=run_id, where=f"the payload of signal {name!r}", annotation=annotation)
    if annotation is None:
        return value
    try:
        return as_annotated(value, annotation)
    except ValueError as problem:
        raise SignalMismatch(name, str(problem)) from None
