"""Answers: templates filled in, and errors as pages."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from durable.errors import (
    ConcurrentExecution,
    DurableError,
    HistoryError,
    InvalidArgument,
    OwnershipError,
    RunNotFound,
    StoreError,
)
from durable.operate.standing import name_error, show_seconds
from durable.web import _links, _texts
from durable.web._forms import FIELD, Forms, set_cookie
from durable.web._setup import Setup

HERE: Final = Path(__file__).parent
_PAGES: Final = ("Overview", "Runs", "Queues", "Workers")


class Answers:
    """The templates of a page."""

    def __init__(self, setup: Setup, forms: Forms) -> None:
        self._setup = setup
        self._forms = forms
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            finalize=_texts.visible,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        own: Any = self._templates  # its annotations name jinja2's own filters alone
        own.filters |= {
            "exact": escape,  # what a form sends back must not be changed, whatever it looks like
            "url": _quoted,
            "took": show_seconds,
            "moment": _texts.show_moment,
            "ago": _texts.show_ago,
            "count": _texts.show_count,
            "error": name_error,
        }
        own.globals |= {
            "queue_address": _links.queue_address,
            "run_address": _links.run_address,
            "term": _links.term,
            "tabs": _PAGES,
            "version": _version(),
            "FIELD": FIELD,
        }

    def page(self, request: Request, template: str, *, status: int = 200, **told: Any) -> Response:
        """A page; where the visitor may change something, with a token for its forms."""
        may_write = self.may_write(request)
        token, cookie = self._forms.token(request) if may_write else ("", None)
        answer = HTMLResponse(
            self._templates.get_template(template).render(
                root=str(request.scope.get("root_path", "")),
                title=self._setup.title,
                read_only=self._setup.read_only,
                may_write=may_write,
                form_token=token,
                **told,
            ),
            status,
        )
        if cookie is not None:
            set_cookie(request, answer, self._forms.cookie, cookie)
        return answer

    def part(self, template: str, **told: Any) -> str:
        """A part of a page, by itself."""
        return self._templates.get_template(template).render(**told)

    def may_write(self, request: Request) -> bool:
        """Whether this visitor may change something here."""
        return not self._setup.read_only and getattr(request.state, "durable_may", None) == "write"

    def problem(
        self, request: Request, status: int, head: str, said: str, *, back: tuple[str, str] | None = None
    ) -> Response:
        """A page that says what is wrong. `back` is an address below the page's own, and its words."""
        return self.page(request, "problem.html", status=status, tab="", head=head, said=said, back=back, code=status)

    def refusal(self, request: Request, problem: DurableError, *, back: tuple[str, str] | None = None) -> Response:
        """The page for an error of the library."""
        for kind, status, head in _HEADS:
            if isinstance(problem, kind):
                return self.problem(request, status, head, str(problem), back=back)
        return self.problem(request, 400, "That cannot be done", str(problem), back=back)


_HEADS: Final[tuple[tuple[type[DurableError] | tuple[type[DurableError], ...], int, str], ...]] = (
    (RunNotFound, 404, "No such run"),
    (ConcurrentExecution, 409, "The run is being executed"),
    (StoreError, 503, "The database cannot be asked"),
    ((OwnershipError, HistoryError), 409, "The run does not allow that"),
    (InvalidArgument, 400, "That cannot be asked"),
)


def _quoted(text: object) -> str:
    return quote(str(text), safe="")


@cache
def _version() -> str:
    """Of the static files: their addresses change with them."""
    found = hashlib.sha256()
    for file in sorted((HERE / "static").iterdir()):
        found.update(file.read_bytes())
    return found.hexdigest()[:10]
