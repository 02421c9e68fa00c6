"""What a request to PostgreSQL comes to: jobs, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, assert_never

from msgspec.structs import replace

from durable._engine.decisions import Claim, ClaimReply, Granted
from durable._engine.headers import blank_header
from durable._engine.leases import Lease
from durable.errors import DurableError, LeaseLost, OutcomeUnknown, RunBeingStarted, StoreUnavailable
from durable.records import Record
from durable.stores._heartbeat import OF_THE_PARENT
from durable.stores._owner import is_dead
from durable.stores._postgres.claims import Claiming, Found, claim_random
from durable.stores._postgres.held import Held
from durable.stores._postgres.job import Job
from durable.stores._postgres.jobs import (
    checkpoint_job,
    claim_job,
    continue_job,
    finish_job,
    job_of,
    look_job,
    poll_job,
    read_job,
    release_job,
    renew_job,
    return_job,
)
from durable.stores._postgres.nesting import refuse_own_run
from durable.stores._postgres.polls import Due, Polling
from durable.stores._postgres.resources import Resources
from durable.stores._postgres.settings import Settings
from durable.stores._work import perform_work
from durable.stores.requests import (
    AnyRequest,
    Begin,
    Checkpoint,
    Continue,
    Finish,
    OnLateReply,
    Poll,
    Polled,
    Release,
)

T = TypeVar("T")

Work: TypeAlias = Generator[Job, Any, T]
"""Jobs, one after the other, each sent the answer of the one before. Blocking and awaited alike."""

_ANSWER_WITHIN: Final = 10.0  # seconds, for a caller that only wants to be told whether it was done
_RELEASE_WITHIN: Final = 5.0  # seconds; then the lease is left to end by itself


class Requests:
    """The requests to a store, answered for callers that block; `work` is that of both colours. Also a `jobs.Asked`."""

    def __init__(self, held: Held, settings: Settings) -> None:
        self._held = held
        self._settings = settings
        self._clock = settings.clock
        self._doubtful_polls: dict[
            str, Polling
        ] = {}  # of each worker, its last poll, if what that has taken is unknown

    def perform(self, request: AnyRequest, on_late_reply: OnLateReply | None) -> Any:
        match request:
            case Checkpoint():
                return self._checkpoint(request.lease, request.record, on_late_reply)
            case Begin() | Finish() | Release() | Continue() | Poll():
                return perform_work(self.work(request), self._held.resources.perform)
            case _:
                return self._held.resources.perform(job_of(request, self))

    def _checkpoint(self, lease: Lease, record: Record, on_late_reply: OnLateReply | None) -> Any:
        job = None
        try:
            job = checkpoint_job(lease, record)
            return self.held_here(lease).perform(job)
        except DurableError:
            raise
        except BaseException as interrupt:
            if on_late_reply is not None:
                on_late_reply(interrupt if job is None else job.fate(interrupt))
            raise

    def work(self, request: Begin | Finish | Release | Continue | Poll) -> Work[Any]:
        """What is asked, as jobs, and what follows on their answers."""
        match request:
            case Begin():
                return self._begin(request.claim, request.alive)
            case Finish():
                return self._finish(request)
            case Release():
                return self._release(request)
            case Continue():
                return self._continue(request)
            case Poll():
                return self._poll(request)
            case never:
                assert_never(never)

    def _begin(self, claim: Claim, alive: Callable[[], bool]) -> Work[ClaimReply]:
        claiming = self._claiming(claim, None)
        dead_owner = None
        try:
            found: Found = yield claiming
            if dead := self._dead_token(found):
                dead_owner = None if self._held.resources.has_left(dead) else found.owner
                claiming = self._claiming(claim, dead)
                found = yield claiming
        except OutcomeUnknown:
            self._held.resources.left(claiming.payload.random, claim.seconds)
            raise
        except RunBeingStarted:
            found = yield look_job(claiming.payload, self.answer_by())
            return found.locked_reply()
        self._keep(found, alive)
        try:
            while (job := self._reading(found, alive)) is not None:
                yield job
            reply = found.reply()
            taken = dead_owner is not None and isinstance(reply, Granted)
            return replace(reply, taken_from=dead_owner) if taken else reply
        except BaseException:
            self._give_up(found)
            raise

    def _poll(self, poll: Poll) -> Work[Polled]:
        if poll.count:  # what cannot be kept is not taken: each lease that ends by itself counts as a death
            self._held.resources.heartbeat.begin()
        due = yield from self._polled(poll)
        granted, taken = list[Granted](), self._kept(due, poll)
        try:
            dead = [(row, token) for row, token, owner in due.held if self._is_dead(owner, token)]
            if dead:  # taken here where there is room, and by the next poll of anyone where there is none
                rest = replace(poll, count=poll.count - len(taken))
                with contextlib.suppress(DurableError):  # what was granted before is; the dead are looked for again
                    more = yield from self._polled(rest, dead)
                    taken += self._kept(more, poll)
            for found in taken:
                granted += yield from self._granted(found)
        except BaseException:
            for found in taken:
                self._give_up(found)
            raise
        return Polled(granted, due.next_in, due.workers, due.floor, due.due, due.tick_in, due.queues)

    def _kept(self, due: Due, poll: Poll) -> list[Found]:
        """What a poll has found, whose leases are renewed from now on; where that cannot be, all of it is given back."""
        try:
            for found in due.found:
                if found.lease is not None:
                    self._keep(found, partial(poll.alive, found.lease))
        except BaseException:
            for found in due.found:
                self._give_up(found)
            raise
        return due.found

    def _granted(self, found: Found) -> Work[list[Granted]]:
        """One of what was polled, read, or with the problem of that."""
        try:
            while (job := self._reading(found, lambda: True)) is not None:
                yield job
            reply = found.reply()
        except DurableError as problem:
            lease = found.lease
            if lease is None:
                return []
            return [Granted(lease, blank_header(), (), problem=problem, queue=found.queue)]
        return [reply] if isinstance(reply, Granted) else []

    def _finish(self, finish: Finish) -> Work[None]:
        self.held_here(finish.lease)
        try:
            yield finish_job(finish)
        finally:
            self._dropped(finish.lease)

    def _continue(self, request: Continue) -> Work[None]:
        lease, heartbeat = request.lease, self.held_here(request.lease).heartbeat
        if request.keep_history:
            self.row(request.history)  # which may be too long
        token = f"{lease.epoch}:{claim_random(self._held.resources.owner.instance)}"
        kept = heartbeat.drop(lease)  # a renewal that is under way may find either token
        try:
            yield continue_job(request, token)
        except BaseException:  # it may have been carried out: then this process may take the run at once
            self._held.resources.left(token.partition(":")[2], lease.seconds)
            raise
        lease.token = token
        lease.refusal = None  # that of a renewal which has met the new token
        if kept is not None:
            heartbeat.keep(*kept)

    def _release(self, release: Release) -> Work[bool]:
        lease = release.lease
        self._dropped(lease)
        if self._held.resources.mark not in lease.token:  # it is that of the process which forked this one
            return False
        if self._held.is_closed:
            self._release_at_last(release)
            return False
        try:
            is_due: bool = yield self._releasing(release)
            return is_due
        except (DurableError, RuntimeError):  # such as: no event loop to answer on, this run's was closed under it
            with contextlib.suppress(StoreUnavailable):  # no thread can be started for it
                self._leave(release)
            raise

    def _claiming(self, claim: Claim, dead: str | None) -> Job:
        """The job of a claim, over the lease of an owner that was found dead with this token."""
        owner = self._held.resources.owner
        deadline = self._clock.elapsed() + claim.seconds
        row = self.row(claim.run_id)
        job = claim_job(Claiming(claim, row, owner.instance, owner.text, dead), deadline)
        job.on_orphan = self._give_back
        return job

    def _polled(self, poll: Poll, dead: Sequence[tuple[str, str]] = ()) -> Work[Due]:
        """What a poll has found, after which the leases of these dead owners have ended."""
        job = self._polling(poll, dead)
        try:
            due: Due = yield job
        except DurableError:
            if job.doubtful:
                self._doubtful_polls[poll.worker] = job.payload
            raise
        return due

    def _polling(self, poll: Poll, dead: Sequence[tuple[str, str]] = ()) -> Job:
        """The job of a poll: another sending of the worker's last one where what that has taken is unknown, to give it back."""
        owner, doubtful = self._held.resources.owner, self._doubtful_polls.pop(poll.worker, None)
        if doubtful is None:
            polling = Polling(poll, self._settings, owner.instance, owner.text, dead)
        else:
            polling = doubtful.with_poll(poll, dead)
        job = poll_job(polling, self.answer_by())
        job.doubtful, job.on_orphan = doubtful is not None, self._give_back_polled
        return job

    def _releasing(self, release: Release) -> Job:
        """The job of a release; when the lease has ended by itself there is nothing to wait for."""
        return release_job(release, min(release.lease.deadline, self._clock.elapsed() + _RELEASE_WITHIN))

    def _keep(self, found: Found, alive: Callable[[], bool]) -> None:
        """A lease that was granted is renewed from now on."""
        if found.lease is not None:
            self._held.resources.heartbeat.keep(found.lease, alive)

    def _reading(self, found: Found, alive: Callable[[], bool]) -> Job | None:
        """What is to be done before the reply to a claim is whole; None when it is, or when its caller is gone."""
        now, lease = self._clock.elapsed(), found.lease
        if lease is not None and lease.why_ended(now) is not None and lease.lost is None:
            return renew_job(lease, now + lease.seconds)  # what was long in coming may be in time all the same
        if found.is_whole:
            return None
        if lease is not None and (problem := lease.why_ended(now)) is not None:
            raise LeaseLost(lease.run_id, problem)
        if not alive():
            raise StoreUnavailable(self._held.resources.connections.where, "the caller that asked for the run is gone")
        return read_job(found, now + _ANSWER_WITHIN)

    def _give_up(self, found: Found) -> None:
        """What was claimed, and cannot be read, is given back, and that is not waited for."""
        if found.lease is not None:
            self._dropped(found.lease)
            self._leave(Release(found.lease))

    def _leave(self, release: Release) -> None:
        """Give a lease back when the database answers, and wait for nothing; until then this process may take it at once."""
        resources, lease = self._held.resources, release.lease
        resources.left(lease.token.partition(":")[2], lease.seconds)
        job = return_job(release, self._clock.elapsed() + lease.seconds)
        with contextlib.suppress(DurableError):  # no thread can be started: the lease ends by itself
            resources.writer(job).post(job)

    def _release_at_last(self, release: Release) -> None:
        """Give back the lease of a run whose store was closed under it, on a connection for just that."""
        resources = self._held.make()
        try:
            resources.perform(self._releasing(release))
        finally:
            resources.close()

    def _dropped(self, lease: Lease) -> None:
        """Renew this lease no more."""
        lease.gone = lease.gone or "it was given back"
        self._held.resources.heartbeat.drop(lease)

    def _dead_token(self, found: Found) -> str | None:
        """The blocking token, if it may be taken over: its owner is dead, or locking is off."""
        if found.owner is None:
            return None
        dead = not self._settings.excludes or self._is_dead(found.owner, found.token)
        return found.token if dead else None

    def _is_dead(self, owner: str, token: str | None) -> bool:
        """Whether no run is executed under the lease of this token: its owner is dead, or it is our own and was left."""
        is_proven = self._settings.take_over_dead and is_dead(owner, token)
        return is_proven or self._held.resources.has_left(token)

    def held_here(self, lease: Lease) -> Resources:
        """This process, if the lease is its own."""
        resources = self._held.resources
        if resources.mark not in lease.token:
            raise LeaseLost(lease.run_id, OF_THE_PARENT)
        return resources

    @property
    def prefix(self) -> str:
        return self._settings.prefix

    def row(self, run_id: str) -> str:
        return self._settings.row(run_id)

    def refuse_own(self, row: str, what: str) -> None:
        refuse_own_run(self._held.resources.connections.where, row, what)

    def answer_by(self) -> float:
        return self._clock.elapsed() + _ANSWER_WITHIN

    def _give_back(self, claimed: Job) -> None:
        if claimed.failure is None:
            self._give_up(claimed.answer)

    def _give_back_polled(self, polled: Job) -> None:
        if polled.failure is None:
            for found in polled.answer.found:
                self._give_up(found)
