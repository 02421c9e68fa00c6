"""The answers to requests, for callers on an event loop."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from durable.stores._postgres.held import Held
from durable.stores._postgres.jobs import checkpoint_job, job_of
from durable.stores._postgres.requests import Requests, Work
from durable.stores._work import await_work
from durable.stores.requests import AnyRequest, Begin, Checkpoint, Continue, Finish, OnLateReply, Poll, Release


class AsyncRequests:
    """The requests to a store, each answered by a future."""

    def __init__(self, held: Held, requests: Requests) -> None:
        self._held = held
        self._requests = requests

    def submit(self, request: AnyRequest, on_late_reply: OnLateReply | None) -> asyncio.Future[Any]:
        requests = self._requests
        match request:
            case Checkpoint():
                resources, job = requests.held_here(request.lease), checkpoint_job(request.lease, request.record)
                if on_late_reply is not None:
                    job.on_orphan = lambda job: on_late_reply(job.failure)
                return resources.submit(job)
            case Begin() | Poll():  # of several jobs: a task
                begun = asyncio.ensure_future(await_work(requests.work(request), self._held.resources.submit))
                begun.add_done_callback(_has_ended)
                return begun
            case Release() if self._held.is_closed:
                return asyncio.get_running_loop().run_in_executor(None, requests.perform, request, None)
            case Finish() | Release() | Continue():
                return self._submitted(requests.work(request))
            case _:
                return self._held.resources.submit(job_of(request, requests))

    def _submitted(self, work: Work[Any]) -> asyncio.Future[Any]:
        """The future of work that is one job, or none: that job's own."""
        try:
            job = next(work)
        except StopIteration as end:
            nothing = asyncio.get_running_loop().create_future()
            nothing.set_result(end.value)
            return nothing
        try:
            answer = self._held.resources.submit(job)
        except Exception as problem:
            work.throw(problem)
            raise
        answer.add_done_callback(partial(_go_on, work))
        return answer


def _go_on(work: Work[Any], answer: asyncio.Future[Any]) -> None:
    """Whatever follows on an answer."""
    problem = None if answer.cancelled() else answer.exception()
    try:
        if answer.cancelled():
            work.close()
        elif problem is not None:
            work.throw(problem)
        else:
            work.send(answer.result())
    except StopIteration:
        return
    except BaseException as raised:
        if raised is not problem:
            raise


def _has_ended(begun: asyncio.Future[Any]) -> None:
    """A caller that was cancelled does not ask what became of it, and asyncio need not complain of that."""
    if not begun.cancelled():
        begun.exception()
