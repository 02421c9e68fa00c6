"""Whether an exception keeps its class on its way through a record."""

from __future__ import annotations

from durable.codecs import Codec, as_codec
from durable.codecs._failures import from_record, to_record


def survives(exception: Exception, *, codec: Codec | None = None) -> bool:
    """Whether a step that raises this can be caught by its class in the workflow; else it comes as `StepFailed`.

    `codec` is the store's, where that is not JSON's. Nothing is stored. What keeps an exception from surviving is what it
    carries: a response, a connection, another exception.
    """
    record = to_record(exception, as_codec(codec))
    return type(from_record(record, as_codec(codec), run_id="", where="an exception")) is type(exception)
