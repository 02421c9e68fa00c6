"""Addresses of the page: everything that it shows stands in its URL, and ids in the query, since they may hold a slash."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple, get_args
from urllib.parse import quote, urlencode

from msgspec import structs

from durable._common.durations import to_utc
from durable.errors import InvalidArgument
from durable.operate.filters import parse_moment, parse_query
from durable.stores.listing import Listed, RunStatus
from durable.stores.reading import Filter, RunLine

PAGE: Final = 50  # runs
AGES: Final = {"": "Any time", "1h": "Last hour", "1d": "Last 24 hours", "7d": "Last 7 days"}
_LONGEST: Final = 1_000  # characters of a query
_FIRST: Final = ("running", "interrupted", "queued", "failed", "completed", "cancelled")
#: The tabs; a status that is new in the store gets one too.
TABS: Final = (*_FIRST, *(one for one in get_args(RunStatus) if one not in _FIRST))


class Search(NamedTuple):
    """What a list was asked for."""

    text: str = ""
    status: str = ""
    since: str = ""
    after: Listed | None = None
    #: Why it cannot be asked; empty where it can.
    problem: str = ""

    def address(self, **changed: str) -> str:
        """The query of a URL: this search with some of it changed, at its beginning."""
        told = {"q": self.text, "status": self.status, "since": self.since} | changed
        return "?" + urlencode({name: value for name, value in told.items() if value}, quote_via=quote)

    def older(self, last: RunLine) -> str:
        """Where it goes on after this line."""
        return self.address(at=last.updated_at.isoformat(), after=last.id)

    def here(self) -> str:
        """This very page of it."""
        after = self.after
        return self.address() if after is None else self.address(at=after.updated_at.isoformat(), after=after.id)

    def filter(self, now: datetime, *, status: str | None = None) -> Filter:
        """As a filter; `status` instead of the tab's. Raises `InvalidArgument`."""
        tab = self.status if status is None else status
        wanted = parse_query(self.text, now=now)
        if tab:
            if tab not in TABS:
                raise InvalidArgument(f"unknown status {tab!r}: one of {', '.join(TABS)}")
            both = not wanted.statuses or tab in wanted.statuses
            # A tab that the query leaves out is empty: no run has this id.
            wanted = structs.replace(wanted, statuses=(tab,)) if both else Filter(ids=("\N{REPLACEMENT CHARACTER}",))
        if self.since:
            since = parse_moment(self.since, now=now, what="since")
            wanted = structs.replace(wanted, since=since if wanted.since is None else max(since, wanted.since))
        return wanted


def read_search(query: Mapping[str, str]) -> Search:
    """What a URL asks for. A mistake in it is told on the page."""
    text, status, since = (" ".join(query.get(name, "").split()) for name in ("q", "status", "since"))
    if len(text) > _LONGEST:
        return Search(problem=f"a search has at most {_LONGEST:,} characters")
    after, problem = None, ""
    if query.get("after"):
        try:
            after = Listed(query["after"], to_utc("at", datetime.fromisoformat(query.get("at", ""))))
        except (ValueError, InvalidArgument):
            problem = "this link to older runs is broken: search again"
    return Search(text, status, since, after, problem)


def hour_of(now: datetime) -> Filter:
    """What has changed in the last hour."""
    return Filter(since=now - timedelta(hours=1))


def quoted(text: str) -> str:
    """A value in a query of the search language."""
    return f'"{text}"' if any(letter in text for letter in ' ,:\t\n"') else text


def term(qualifier: str, value: str) -> str:
    """`workflow:checkout`; empty where the value cannot be said."""
    return "" if '"' in value else f"{qualifier}:{quoted(value)}"


def run_address(id: str, **more: str) -> str:
    """The page of a run."""
    return "run?" + urlencode({"id": id} | {name: value for name, value in more.items() if value}, quote_via=quote)


def queue_address(action: str, name: str) -> str:
    """Where a form sends what is done with a queue."""
    return f"queue/{action}?" + urlencode({"name": name}, quote_via=quote)
