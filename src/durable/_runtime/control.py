"""What can be asked of a run from outside: to stop, to hear something, or to go on from an earlier step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from durable._common.boundary import public
from durable._common.checks import check_flag, check_name
from durable._common.durations import show
from durable._engine.decisions import Claim, ClaimReply, Granted
from durable._engine.leases import Lease
from durable._engine.lines import Cut
from durable._engine.retry_cut import aside_record, cut_for_retry
from durable._engine.signals import check_signal_name
from durable._runtime.sync_bridge import Coroutines, at_once, call_now
from durable.codecs import codec_of
from durable.errors import ConcurrentExecution, InvalidArgument, RunBeingStarted, RunNotFound
from durable.records import Header, Record, Status
from durable.snapshots import Snapshot, journal_of
from durable.stores._adapters.kinds import AnyStore, as_run_store, queueing_store
from durable.stores.protocol import AsyncRunStore
from durable.stores.requests import Begin, Cancel, Finish, Release, Signal

_LEASE: Final = 30.0  # seconds in which a run is read and one record is written
MAX_REASON: Final = 2000  # characters, of why a run is cancelled
_BUSY: Final = "Wait until that has ended, or stop it with durable.cancel: only then can its steps be set aside."

_retrying: Final = set[asyncio.Task[list[str]]]()  # an event loop holds its tasks weakly


@public("durable.cancel")
def cancel(store: AnyStore, id: str, *, force: bool = False, reason: str | None = None) -> bool:
    """Ask the run `id` to end, wherever it is executed. True when it had not ended; `reason` is kept, and shown.

    Its owner hears within two seconds. No further step begins; a body that is at work goes on to its end and is recorded (a
    coroutine is cancelled where its step is `cancellable`); then clean-up, undos and what `step.on_end` was given are done, and
    the run is `cancelled`. One that nothing executes is closed by a worker where it was started, and else by the next
    `durable.run` of its id; where it has nothing to close, it is cancelled at once. What was recorded and not undone is kept,
    and `durable.run` with this id goes on from there.

    With `force`, or asked a second time, the lease is taken from the owner: the run is `cancelled` at once, whatever is left
    to be undone. Its owner can write nothing more: it stops with `RunCancelled` at its next checkpoint, or within two seconds
    where it waits.

    Raises `InvalidArgument`, and the store's errors.
    """
    return as_run_store(store).perform(_checked_cancel(id, force, reason))


@public("durable.aio.cancel")
async def cancel_async(store: AnyStore, id: str, *, force: bool = False, reason: str | None = None) -> bool:
    """The same for asyncio."""
    return await as_run_store(store).aio.submit(_checked_cancel(id, force, reason))


def _checked_cancel(id: str, force: object, reason: object) -> Cancel:
    if reason is not None and not isinstance(reason, str):
        raise InvalidArgument(f"reason must be a text, not {show(reason)}")
    if reason is not None and ("\0" in reason or len(reason) > MAX_REASON or not _is_text(reason)):
        raise InvalidArgument(
            f"reason must be a text of at most {MAX_REASON} characters, without NUL and lone surrogates"
        )
    return Cancel(check_name("a run's id", id), check_flag("force", force), reason)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@public("durable.signal")
def signal(
    store: AnyStore,
    id: str,
    name: str,
    payload: Any = None,
    *,
    dedup: str | None = None,
    connection: Any = None,
    create_later: bool = False,
) -> bool:
    """Send `payload` (a value that can be stored) to the run `id`, where `step.wait_for(name)` returns it.

    It is kept until it is received, also when the run does not wait for it yet. Returns whether such a run is there; where none
    is, nothing is sent.

    - `dedup`: a text; of what is sent to a run with the same name and `dedup`, it gets the first.
    - `connection`: send it in the transaction of this connection to the store's database, as for `durable.start`.
    - `create_later`: keep it also for a run that is not there yet, whose `start` or `run` comes later.

    Raises `InvalidArgument`, `UnsuitableConnection`, `UnstorableValue`; `RunBeingStarted` where a transaction that has not
    ended sends the same `dedup`; and the store's errors: after `OutcomeUnknown` it may have been sent.
    """
    sent = _checked_signal(store, id, name, payload, dedup, create_later=create_later)
    if connection is not None:
        return queueing_store(store, "durable.signal").perform_within(sent, connection, "durable.signal")
    return as_run_store(store).perform(sent)


@public("durable.aio.signal")
async def signal_async(
    store: AnyStore,
    id: str,
    name: str,
    payload: Any = None,
    *,
    dedup: str | None = None,
    connection: Any = None,
    create_later: bool = False,
) -> bool:
    """The same for asyncio; `connection` as for `durable.aio.start`."""
    sent = _checked_signal(store, id, name, payload, dedup, create_later=create_later)
    if connection is not None:
        return await queueing_store(store, "durable.signal").submit_within(sent, connection, "durable.signal")
    return await as_run_store(store).aio.submit(sent)


@public("durable.retry")
def retry(
    store: AnyStore, id: str, *, from_step: str | None = None, even_effects: bool = False, dry_run: bool = False
) -> list[str]:
    """Let the run `id` be taken up again: set steps aside, so that the next `durable.run` of this id runs them again.

    - Without `from_step`, the steps that a refused run (`RetryRefused`) names. With it, the step of that key and every step
      that started after it was recorded. Their records stay in the journal; they count no more.
    - `even_effects`: also where transactions and at-most-once steps are among them, whose effects stand.
    - `dry_run`: only say which it would be.

    Returns the keys of the steps set aside, in the order of their records. The run is `interrupted` then, and nothing is
    called before the next `durable.run`; one that was started is due at once, for a worker.

    Raises `RetryRefused` for a completed run, or where effects stand in the way; `ConcurrentExecution` when the run is being
    executed; `RunNotFound`; `InvalidArgument` where no step of this key is recorded; `UnreadableRecord`, and the store's
    errors. Nothing was changed then, but after `OutcomeUnknown` the steps may have been set aside.
    """
    given = _Retry(id, from_step, even_effects=even_effects, dry_run=dry_run)
    return at_once(_retry, Coroutines(as_run_store(store), call_now), given)


@public("durable.aio.retry")
async def retry_async(
    store: AnyStore, id: str, *, from_step: str | None = None, even_effects: bool = False, dry_run: bool = False
) -> list[str]:
    """The same for asyncio. Cancelled, it goes on by itself."""
    given = _Retry(id, from_step, even_effects=even_effects, dry_run=dry_run)
    task = asyncio.ensure_future(_retry(as_run_store(store).aio, given))
    _retrying.add(task)
    task.add_done_callback(_retrying.discard)
    return await asyncio.shield(task)


async def _retry(runs: AsyncRunStore | Coroutines, retry: _Retry) -> list[str]:
    claim = retry.claim(await runs.load(retry.run_id))
    if claim is None:
        return retry.keys
    try:
        lease = retry.lease(await runs.submit(Begin(claim, retry.is_going_on)))
        try:
            record = retry.record()
            if record is None:
                await runs.submit(Release(lease))
            else:
                await runs.submit(Finish(lease, Status.RUNNING, record))
        except BaseException:
            await runs.submit(Release(lease))
            raise
    finally:
        retry.over = True
    return retry.keys


class _Retry:
    """One call of `retry`, checked: what it asks of the store, and what it makes of the answers."""

    def __init__(self, run_id: str, from_step: str | None, *, even_effects: bool, dry_run: bool) -> None:
        self.run_id = check_name("a run's id", run_id)
        self._from_step = None if from_step is None else check_name("from_step", from_step)
        self._even_effects = check_flag("even_effects", even_effects)
        self._dry_run = check_flag("dry_run", dry_run)
        self._granted: Granted | None = None
        self._cut = Cut()
        self.over = False

    def is_going_on(self) -> bool:
        """Whether the lease is still needed; asked by the heartbeat. Ctrl-C may come before the lease is known here."""
        return not self.over

    @property
    def keys(self) -> list[str]:
        """What is set aside."""
        return list(self._cut.keys)

    def claim(self, stored: Snapshot | None) -> Claim | None:
        """The claim under which it is done; None where nothing is to be done. Refused before anything is changed."""
        if stored is None:
            raise RunNotFound(self.run_id)
        header, records = journal_of(stored)
        self._decide(header, records)
        if self._dry_run and header.execution.status != Status.RUNNING:
            return None
        version = header.metadata.get("version", 1)
        return Claim(
            run_id=self.run_id,
            workflow=header.workflow_name,
            version=version,
            seconds=_LEASE,
            create=False,
            amends=True,
        )

    def lease(self, reply: ClaimReply) -> Lease:
        if isinstance(reply, Granted):
            self._granted = reply
            return reply.lease
        if reply.is_locked:
            raise RunBeingStarted(self.run_id)
        if reply.owner is not None:
            raise ConcurrentExecution(self.run_id, reply.owner, reply.expires_in or 0.0, _BUSY)
        if reply.header is None:
            raise RunNotFound(self.run_id)
        self._decide(reply.header, reply.records)  # it may have been completed meanwhile
        raise ConcurrentExecution(self.run_id, "another call, which has just ended", advice=_BUSY)

    def record(self) -> Record | None:
        """The record to be written under the lease; None where nothing is to be written."""
        granted = self._granted
        assert granted is not None, "asked for before the lease"  # noqa: S101 -- our own mistake, not an input
        if granted.problem is not None:
            raise granted.problem
        header, records = granted.header, granted.records
        self._decide(header, records)
        if self._dry_run or (not self._cut.keys and header.execution.status == Status.RUNNING):
            return None
        return aside_record(self._cut, records, self._from_step)

    def _decide(self, header: Header, records: Sequence[Record]) -> None:
        self._cut = cut_for_retry(self.run_id, header, records, self._from_step, even_effects=self._even_effects)


def _checked_signal(
    store: AnyStore, id: str, name: str, payload: Any, dedup: str | None, *, create_later: bool
) -> Signal:
    text = codec_of(store).encode(payload, what=f"the payload of signal {name!r}")
    return Signal(
        check_name("a run's id", id),
        check_signal_name(name),
        text.decode(),
        None if dedup is None else check_name("dedup", dedup),
        check_flag("create_later", create_later),
    )
