"""Python values as JSON and back: only what comes back as it was.

Values take one road, live and replayed: encode, store, decode. So a value that does not survive is refused when its step
returns, not found at the first crash.

What is native to JSON is stored as it is. What is not carries a tag, an object with the key `$type`, and only where it
stands, so that all around it stays readable in SQL; the fields of a data class stand beside its tag:

    {"total": 12, "paid": {"$type": "datetime", "value": "2031-05-01T12:00:00+02:00", "zone": "Europe/Berlin"}}
    {"$type": "shop:Receipt", "number": 7, "lines": [{"$type": "shop:Line", "name": "tea", "price": 3}]}

`_writing` makes such a tree from a value and `_reading` a value from such a tree; `_kinds` are the types of the standard
library, `_shapes` the data classes, `_stored` and `_libraries` what is stored as something plainer, `_names` how a class is
found again; `_annotations` compares a result with what its function promises, `_promises` knows the promises that cannot be
kept; `_exceptions` takes an exception apart; `_json` is the codec of it all, and `_several` chooses among codecs by the
name in a record.
"""

from durable.codecs import _libraries as _libraries  # its recipes
from durable.codecs._advice import after_the_body
from durable.codecs._annotations import accepts, returns
from durable.codecs._json import JsonCodec, checked_plain
from durable.codecs._names import alias
from durable.codecs._several import Codecs, chosen, codec_of
from durable.codecs._stored import stored_as
from durable.codecs.protocol import Codec

__all__ = [
    "Codec",
    "Codecs",
    "JsonCodec",
    "accepts",
    "after_the_body",
    "alias",
    "checked_plain",
    "chosen",
    "codec_of",
    "returns",
    "stored_as",
]
