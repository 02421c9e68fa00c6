"""What changes runs: each a POST that ends with a redirect, or says why it was refused."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import unquote

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

import durable
from durable.errors import DurableError
from durable.operate.actions import Actions
from durable.operate.standing import stand, state_of
from durable.stores.reading import Filter, RunLine
from durable.web import _links
from durable.web._answers import Answers
from durable.web._forms import FIELD, Forms, who
from durable.web._offers import offers
from durable.web._pages import mark_of
from durable.web._reads import Reads
from durable.web._setup import Setup
from durable.web._texts import visible

_ONE: Final = ("retry", "cancel", "signal", "fork", "delete")
_MANY: Final = ("retry", "cancel", "delete")
_OF_QUEUES: Final = ("pause", "resume")
_MOST: Final = 1_000  # runs at once
_FIELDS: Final = _MOST + 20


class Changes:
    """What answers POST."""

    def __init__(self, setup: Setup, reads: Reads, answers: Answers, forms: Forms) -> None:
        self._setup = setup
        self._reads = reads
        self._answers = answers
        self._forms = forms

    async def one(self, request: Request) -> Response:
        """An action on the run that the address names."""
        action, run_id = request.path_params["action"], request.query_params.get("id", "")
        back = (_links.run_address(run_id), "Back to the run")
        given, refused = await self._form(request, back)
        if refused is not None:
            return refused
        if action not in _ONE:
            return self._answers.problem(
                request, 404, "There is no such action", f"Known are {', '.join(_ONE)}.", back=back
            )
        line = await self._reads.line(run_id)
        if line is None:
            return self._answers.problem(
                request, 404, "No such run", "It was deleted meanwhile, or never was.", back=("runs", "All runs")
            )
        if (moved := self._moved(request, line, action, given, back)) is not None:
            return moved
        if action == "delete" and given.get("typed") not in (run_id, visible(run_id)):
            said = "What was typed is not the run's run_id. Nothing was deleted."
            return self._answers.problem(request, 400, "Not confirmed", said, back=back)
        return await self._done(request, run_id, action, given, back)

    async def _done(
        self, request: Request, run_id: str, action: str, given: FormData, back: tuple[str, str]
    ) -> Response:
        actions = self._actions(request)
        step = unquote(_text(given, "step")) or None
        even = given.get("even_effects") == "yes"
        to = run_id
        try:
            match action:
                case "retry":
                    await self._reads.ask(lambda: actions.retry(run_id, from_step=step, even_effects=even))
                case "cancel":
                    await self._reads.ask(actions.cancel, run_id)
                case "signal":
                    await self._reads.ask(
                        actions.signal, run_id, _text(given, "name"), json.loads(_text(given, "payload") or "null")
                    )
                case "fork":
                    new_id = _text(given, "new_id") or None
                    to = await self._reads.ask(
                        lambda: actions.fork(run_id, from_step=step, new_id=new_id, even_effects=even)
                    )
                case _:
                    await self._reads.ask(actions.delete, run_id)
        except DurableError as problem:
            return self._answers.refusal(request, problem, back=back)
        except ValueError as problem:  # of JSON
            said = f"The payload is no JSON: {problem}. A text needs quotation marks."
            return self._answers.problem(request, 400, "The signal was not sent", said, back=back)
        except RecursionError:
            return self._answers.problem(request, 400, "The signal was not sent", "Its payload is too deep.", back=back)
        root = request.scope.get("root_path", "")
        where = "runs?done=delete&n=1" if action == "delete" else _links.run_address(to, done=action)
        return RedirectResponse(f"{root}/{where}", 303)

    async def many(self, request: Request) -> Response:
        """An action on the runs that were chosen: asked for once more, with their number, and then done."""
        action = request.path_params["action"]
        search = _links.read_search(request.query_params)
        back = ("runs" + search.here(), "Back to the list")
        given, refused = await self._form(request, back)
        if refused is not None:
            return refused
        ids = list(dict.fromkeys(unquote(one) for one in given.getlist("id") if isinstance(one, str)))
        if action not in _MANY or not ids or len(ids) > _MOST:
            said = "Choose some runs first." if not ids else f"Known are {', '.join(_MANY)}, for up to {_MOST:,} runs."
            return self._answers.problem(request, 400, "Nothing was done", said, back=back)
        if given.get("sure") != "yes":
            lines = {line.id: line for line in await self._reads.ask(self._lines, ids)}
            now = self._reads.now()
            chosen = [(one, stand(lines[one], now=now) if one in lines else None) for one in ids]
            return self._answers.page(
                request, "confirm.html", tab="Runs", action=action, chosen=chosen, search=search, back=back
            )
        done = await self._reads.ask(self._all, self._actions(request), action, ids)
        root = request.scope.get("root_path", "")
        told = search.address(done=action, n=str(done), refused=str(len(ids) - done))
        return RedirectResponse(f"{root}/runs{told}", 303)

    async def queue(self, request: Request) -> Response:
        """Whether the runs of the queue that the address names are begun."""
        action, name, back = (
            request.path_params["action"],
            request.query_params.get("name", ""),
            ("queues", "All queues"),
        )
        _, refused = await self._form(request, back)
        if refused is not None:
            return refused
        if action not in _OF_QUEUES:
            return self._answers.problem(
                request, 404, "There is no such action", f"Known are {', '.join(_OF_QUEUES)}.", back=back
            )
        known = [line.queue.name for line in await self._reads.ask(self._setup.store.queues)]
        if name not in known:  # a typing error would be a row for ever
            return self._answers.problem(
                request, 404, "No such queue", "It has no limits, and nothing that is due or executed.", back=back
            )
        actions = self._actions(request)
        try:
            await self._reads.ask(lambda: actions.pause(name, paused=action == "pause"))
        except DurableError as problem:
            return self._answers.refusal(request, problem, back=back)
        return RedirectResponse(f"{request.scope.get('root_path', '')}/queues?done={action}", 303)

    def _lines(self, ids: list[str]) -> list[RunLine]:
        return list(self._setup.store.runs(Filter(ids=tuple(ids)), limit=_MOST))

    @staticmethod
    def _all(actions: Actions, action: str, ids: list[str]) -> int:
        """How many of them it was done to; the log says of each that was refused why."""
        done = 0
        for run_id in ids:
            try:
                found = getattr(actions, action)(run_id)
            except (durable.StoreError, durable.OutcomeUnknown):
                raise
            except DurableError:
                continue
            done += found is not False
        return done

    def _moved(
        self, request: Request, line: RunLine, action: str, given: FormData, back: tuple[str, str]
    ) -> Response | None:
        """The answer where the run is not any more what the page showed, and the action is none for what it is now."""
        state = state_of(line, now=self._reads.now())
        offer = offers(
            state, may_write=True, read_only=False, has_records=line.records > 0 or line.started_at is not None
        )
        seen = _text(given, "seen")
        is_other = bool(seen) and seen.partition(" ")[0] != mark_of(line).partition(" ")[0]
        if not is_other and not offer[action].reason:
            return None
        said = (
            f"It is {state} now. {offer[action].reason}"
            if offer[action].reason
            else f"It is {state} now: look, and decide again."
        )
        return self._answers.problem(request, 409, "The run has moved on", said, back=back)

    async def _form(self, request: Request, back: tuple[str, str]) -> tuple[FormData, Response | None]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            return FormData(), self._answers.problem(
                request, 415, "That is no form of this page", "Nothing was done.", back=back
            )
        given = await request.form(max_files=0, max_fields=_FIELDS)
        if self._forms.is_ours(request, given.get(FIELD)):
            return given, None
        said = (
            "Its form is older than this process, or was shown to someone else. Nothing was done: go back, and try again. "
            "Several processes that serve the page need the same $DURABLE_WEB_SECRET."
        )
        return given, self._answers.problem(request, 403, "This form is not valid any more", said, back=back)

    def _actions(self, request: Request) -> Actions:
        return Actions(self._setup.store, who=who(request) or "a visitor", via="web")


def _text(given: FormData, name: str) -> str:
    value: Any = given.get(name)
    return value if isinstance(value, str) else ""
