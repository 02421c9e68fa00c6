"""The placeholders of our SQL, which are psycopg's, as those of the protocol: `$1`, `$2` …

psycopg does the same for each execution of a statement of more than 4,096 characters, as our largest are, and caches the others
only.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

_PLACEHOLDER: Final = re.compile(
    rb"%(?:\((\w+)\)s|(s)|(%))"
)  # a doubled % may stand before an s, in the name of a table


class Numbered(NamedTuple):
    """A statement with the placeholders of the protocol."""

    text: bytes
    #: Of its parameters, in their order; none where they are given in their order.
    names: tuple[str, ...]


@lru_cache(maxsize=1024)
def number_parameters(query: bytes) -> Numbered:
    """The statement with `$1`, `$2` … for `%s`, or for `%(name)s`, which may come several times."""
    names, count = dict[bytes, int](), 0

    def numbered(found: re.Match[bytes]) -> bytes:
        nonlocal count
        name, _, percent = found.groups()
        if percent:
            return percent
        if name is None:
            count += 1
            return b"$%d" % count
        return b"$%d" % names.setdefault(name, len(names) + 1)

    text = _PLACEHOLDER.sub(numbered, query)
    return Numbered(text, tuple(name.decode() for name in names))
