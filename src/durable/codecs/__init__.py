"""Python values as JSON and back: only what comes back as it was.

Values take one road, live and replayed: encode, store, decode. So a value that does not survive is refused when its
step returns, not found at the first crash.

What is native to JSON is stored as it is. What is not carries a tag, an object with the key `$type`, and only where it
stands, so that all around it stays readable in SQL; the fields of a data class stand beside its tag:

    {"total": 12, "paid": {"$type": "datetime", "value": "2031-05-01T12:00:00+02:00", "zone": "Europe/Berlin"}}
    {"$type": "shop:Receipt", "number": 7, "lines": [{"$type": "shop:Line", "name": "tea", "price": 3}]}

Where to look:

    _json          the codec `JsonCodec`                      _codec_set     several codecs, told apart by name
    _encoder       a value as a tree                          _decoder       a value from its tree
    _stdlib        datetime, Decimal, UUID, bytes, …          _shapes        data classes: fields, and an instance again
    _conversions   types stored as something plainer          _libraries     such types of well-known libraries
    _names         a class by its name                        _fingerprints  what of a data class counts in one
    _annotations   a value held against its annotation        _promises      annotations that no value can keep
    _plain_parts   plain JSON as what an annotation says
    _failures      a step's failure as a record, and back     _exceptions    an exception taken apart
    _problems      what goes wrong between value and tree     _advice        what to return instead
"""

from durable.codecs import _libraries as _libraries  # its recipes
from durable.codecs._advice import advice_after_body
from durable.codecs._annotations import parameter_annotation, return_annotation
from durable.codecs._codec_set import CodecSet, as_codec, codec_of
from durable.codecs._conversions import stored_as
from durable.codecs._json import JsonCodec, check_plain
from durable.codecs._names import alias
from durable.codecs._plain_parts import as_annotated
from durable.codecs.protocol import Codec

__all__ = [
    "Codec",
    "CodecSet",
    "JsonCodec",
    "advice_after_body",
    "alias",
    "as_annotated",
    "as_codec",
    "check_plain",
    "codec_of",
    "parameter_annotation",
    "return_annotation",
    "stored_as",
]
