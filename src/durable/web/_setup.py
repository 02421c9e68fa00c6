"""What a page was made with, checked."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast
from urllib.parse import urlsplit

from starlette.requests import Request

from durable.errors import InvalidArgument
from durable.operate.redact import Redact, redact_by_name
from durable.stores.protocol import ReadableStore

May: TypeAlias = Literal["read", "write"] | None
Auth: TypeAlias = Callable[[Request], May | Awaitable[May]]

LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
SECRET: Final = "DURABLE_WEB_SECRET"  # noqa: S105 -- the variable's name; what several processes sign cookies with
_SHORTEST: Final = 32  # characters of a secret
_HOST: Final = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_PLACES: Final = ("{id}", "{trace}")


class Setup(NamedTuple):
    """What all rooms of a page share."""

    store: ReadableStore
    auth: Auth
    hosts: frozenset[str]
    read_only: bool
    redact: Redact
    trace_url: str | None
    title: str
    refresh: float
    secret: bytes


def checked_setup(
    store: Any,
    auth: Any,
    hosts: Any,
    redact: Any,
    trace_url: Any,
    title: Any,
    refresh: Any,
    *,
    read_only: Any,
) -> Setup:
    """The setup, or `InvalidArgument` naming what is wrong with it."""
    for verb in ("runs", "count_runs", "journal", "header", "signals"):
        if not hasattr(store, verb):
            raise InvalidArgument(
                f"durable.web.app shows runs of a store that can be read, from durable.stores, not {type(store).__name__}"
            )
    if not callable(auth):
        raise InvalidArgument(
            'auth must be a function of the request that returns "read", "write", or None for nothing: who may see the page is '
            "never guessed"
        )
    if not isinstance(read_only, bool):
        raise InvalidArgument(f"read_only must be True or False, not {read_only!r}")
    if redact is not None and not callable(redact):
        raise InvalidArgument("redact must be a function of where a value stands, and it, or None")
    if not isinstance(title, str):
        raise InvalidArgument(f"title must be a text, not {type(title).__name__}")
    if isinstance(refresh, bool) or not isinstance(refresh, int | float) or not 0.05 <= refresh <= 3600:  # noqa: PLR2004
        raise InvalidArgument(f"refresh must be a number of seconds from 0.05 to 3600, not {refresh!r}")
    return Setup(
        store=store,
        auth=cast("Auth", auth),
        hosts=_checked_hosts(hosts),
        read_only=read_only,
        redact=redact_by_name if redact is None else redact,
        trace_url=_checked_trace(trace_url),
        title=title,
        refresh=float(refresh),
        secret=_secret(),
    )


def _checked_hosts(hosts: Any) -> frozenset[str]:
    if isinstance(hosts, str) or not isinstance(hosts, Iterable):
        raise InvalidArgument(f"hosts must be names like ('ops.example.com',), not {hosts!r}")
    names = [str(one).lower() for one in cast("Iterable[object]", hosts)]
    for name in names:
        if not _HOST.fullmatch(name):
            raise InvalidArgument(
                f"{name!r} in hosts is no name of a host without its port, like ops.example.com; each is said in full, since "
                f"a wildcard would let any name in"
            )
    return frozenset((*LOOPBACK, *names))


def _checked_trace(template: Any) -> str | None:
    if template is None:
        return None
    if not isinstance(template, str) or urlsplit(template).scheme not in ("http", "https"):
        raise InvalidArgument(f"trace_url must be a link like https://traces.example/{{trace}}, not {template!r}")
    left = template
    for place in _PLACES:
        left = left.replace(place, "")
    if "{" in left or "}" in left or left == template or not urlsplit(left).netloc:
        raise InvalidArgument(f"trace_url has {' or '.join(_PLACES)} in its path or query, and nothing else in braces")
    if "{" in urlsplit(template).netloc:
        raise InvalidArgument("trace_url names its host: no run may choose it")
    return template


def _secret() -> bytes:
    given = os.environ.get(SECRET, "")
    if given and len(given) < _SHORTEST:
        raise InvalidArgument(f"${SECRET} has fewer than {_SHORTEST} characters: anybody could sign with it")
    return given.encode() if given else secrets.token_bytes(32)
