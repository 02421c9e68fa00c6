"""The page as an ASGI application."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from durable._common.boundary import public
from durable.errors import DurableError
from durable.operate.redact import Redact
from durable.stores.protocol import ReadableStore
from durable.web._answers import HERE, Answers
from durable.web._changes import Changes
from durable.web._forms import Forms
from durable.web._guard import Guard
from durable.web._live import Live
from durable.web._pages import Pages
from durable.web._reads import Reads
from durable.web._setup import Auth, checked_setup


@public("durable.web.app")
def app(
    store: ReadableStore,
    *,
    auth: Auth,
    hosts: Collection[str] = (),
    read_only: bool = False,
    redact: Redact | None = None,
    trace_url: str | None = None,
    title: str = "",
    refresh: float = 1.0,
) -> ASGIApp:
    """A page on the runs of `store`, as an ASGI application: mount it in yours, or serve it by itself.

    - `auth(request)`, sync or async, returns what the visitor may do: `"read"`, `"write"`, or None for nothing. What it leaves
      in `request.state.durable_user` is who did it, in the line that each change writes to the log `durable.audit`. When it
      raises, nothing is shown.
    - `hosts`: the names under which it is served, without ports. Loopback ones are known: all others are refused, since a
      name that someone else holds may point to your machine.
    - `read_only`: there is nothing on it that changes anything.
    - `redact(where, value)` returns what may be seen of a value. By default what stands under a key like `password` or `token`
      is hidden. Where it raises, nothing is shown of the value.
    - `trace_url`: a link from each run to its trace, with `{id}` and `{trace}` in it; it is never fetched.
    - `title` stands in the page's head; `refresh` says after how many seconds open pages look for changes.

    Raises `InvalidArgument`; `ModuleNotFoundError` at the import without the extra `web`.
    """
    setup = checked_setup(store, auth, hosts, redact, trace_url, title, refresh, read_only=read_only)
    forms, reads = Forms(setup.secret), Reads(store)
    answers = Answers(setup, forms)
    pages, live = Pages(setup, reads, answers), Live(setup, reads, answers)
    routes: list[BaseRoute] = [
        Route("/", pages.overview),
        Route("/runs", pages.runs),
        Route("/run", pages.run),
        Route("/value", pages.value),
        Route("/queues", pages.queues),
        Route("/workers", pages.workers),
        Route("/live", live.stream),
        Route("/healthz", _healthz),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    if not read_only:
        changes = Changes(setup, reads, answers, forms)
        routes += [
            Route("/run/{action:str}", changes.one, methods=["POST"]),
            Route("/runs/{action:str}", changes.many, methods=["POST"]),
            Route("/queue/{action:str}", changes.queue, methods=["POST"]),
        ]

    def failed(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, DurableError)  # noqa: S101 -- as it is registered below
        return answers.refusal(request, problem, back=("runs", "All runs"))

    def missing(request: Request, problem: Exception) -> Response:
        status = getattr(problem, "status_code", 500)
        if getattr(request.state, "durable_may", None) is None:
            return PlainTextResponse(str(getattr(problem, "detail", "")), status)
        head, said = _HTTP.get(status, ("That cannot be done", str(getattr(problem, "detail", ""))))
        headers: Any = getattr(problem, "headers", None) or {}
        answer = answers.problem(request, status, head, said, back=("runs", "All runs"))
        answer.headers.update(headers)
        return answer

    inner = Starlette(routes=routes, exception_handlers={DurableError: failed, HTTPException: missing})
    return Guard(inner, setup, reads)


_HTTP = {
    404: ("There is no such page", "The address names nothing that is here."),
    405: ("That is not done this way", "This address answers to another kind of request."),
}


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok")
