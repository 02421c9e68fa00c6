"""What is committed together, what follows an error, and until when a reply is waited for."""

from __future__ import annotations

import pytest

from durable._engine import batches
from durable._engine.batches import Backlog, Entry, Patience, Verb, Verdict, reply_deadline
from durable._engine.leases import Lease

CHECKPOINT, FINISH = Verb("checkpoint", shares_runs=True), Verb("finish")
CLAIM, RELEASE = Verb("claim", Patience.FROM_OUTSIDE), Verb("release", Patience.BRIEF)


def entry(run_id: str = "run", verb: Verb = CHECKPOINT, *, size: int = 1, deadline: float = 100.0) -> Entry[Verb]:
    return Entry(verb, run_id, size, deadline)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 500])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_nothing_gets_lost_or_doubled(verdict: Verdict, size: int) -> None:
    """Whatever an error means, each entry fails, or is tried at once, or is tried later: one of them."""
    batch = [entry(f"run-{number}") for number in range(size)]
    follow = batches.recover(list(batch), verdict)
    fates = [*follow.failed, *(entry for half in follow.at_once for entry in half), *follow.later]
    assert sorted(map(id, fates)) == sorted(map(id, batch))
    assert all(follow.at_once), "an empty batch would be performed"


def test_a_refused_batch_is_halved_until_the_bad_entry_stands_alone() -> None:
    """FAULTS 115, pure: with one bad entry in 500, about twice nine statements more."""
    good, bad = [entry(f"run-{number}") for number in range(499)], entry("bad")
    portions, failed, statements = [[*good[:123], bad, *good[123:]]], list[Entry[Verb]](), 0
    while portions:
        portion = portions.pop()
        statements += 1
        if bad in portion:
            follow = batches.recover(portion, Verdict.REFUSED)
            failed += follow.failed
            portions += follow.at_once
    assert failed == [bad]
    assert statements <= 1 + 2 * 9


def test_a_victim_of_conflicts_is_tried_a_bounded_number_of_times() -> None:
    one, tries = entry(), 0
    portions = [[one]]
    while portions:
        tries += 1
        portions = batches.recover(portions.pop(), Verdict.CONFLICT).at_once
    assert tries == batches.MAX_CONFLICTS


def test_of_what_is_locked_out_each_goes_alone_in_its_order_and_the_one_that_waits_fails() -> None:
    """FAULTS 133, pure: one time-out for all of 500, a short one for the one that a transaction holds, and no third."""
    batch, waits, portions, failed, done = (
        [entry(f"run-{n}") for n in range(500)],
        123,
        list[list[Entry[Verb]]](),
        [],
        [],
    )
    portions.append(batch)
    statements = 0
    while portions:
        portion = portions.pop()
        statements += 1
        if batch[waits] in portion:
            follow = batches.recover(portion, Verdict.LOCKED)
            failed += follow.failed
            portions += follow.at_once
        else:
            done += portion
    assert failed == [batch[waits]]
    assert done == [*batch[:waits], *batch[waits + 1 :]]
    assert statements == 1 + 500


@pytest.mark.parametrize("verdict", [Verdict.PASSING, Verdict.UNREACHED])
def test_only_who_has_nothing_to_lose_is_told_at_once(verdict: Verdict) -> None:
    fates = {}
    for verb in (CHECKPOINT, FINISH, CLAIM, RELEASE):
        for unknown in (False, True):
            one = entry(verb=verb)
            one.unknown = unknown
            fates[verb, unknown] = bool(batches.recover([one], verdict).failed)
    assert {kind for kind, failed in fates.items() if failed} == {(CLAIM, False), (RELEASE, False), (RELEASE, True)}


def test_a_release_whose_reply_was_lost_is_tried_once_more() -> None:
    """Nobody waits long for it, and a lease that is not given back keeps others out until it ends."""
    batch = [entry("a", verb=RELEASE), entry("b", verb=RELEASE)]
    assert batches.recover(batch, Verdict.UNKNOWN).at_once == [batch]
    assert batches.recover(batch, Verdict.UNKNOWN).failed == batch


def test_an_unknown_outcome_is_remembered() -> None:
    batch = [entry("a"), entry("b")]
    assert batches.recover(batch, Verdict.UNKNOWN).later == batch
    assert all(one.unknown for one in batch)


def test_a_batch_is_of_one_kind_and_the_longest_waiting_goes_first() -> None:
    backlog: Backlog[Entry[Verb]] = Backlog()
    lost = entry("b")
    lost.unknown = True
    waiting_ones = [entry("a"), lost, entry("c", FINISH), entry("d"), entry("e", FINISH)]
    for one in waiting_ones:
        backlog.add(one)
    taken = [[one.run_id for one in backlog.take()] for _ in range(3)]
    assert taken == [["a", "d"], ["b"], ["c", "e"]]
    assert not backlog
    assert backlog.bytes == 0


def test_verbs_that_share_commits_go_together_in_the_order_of_their_arrival() -> None:
    """Nothing of a run under two verbs, and nothing whose reply was lost; what is passed over keeps its turn."""
    first, second = Verb("first", shares_runs=True, shares_commits=True), Verb("second", shares_commits=True)
    backlog: Backlog[Entry[Verb]] = Backlog()
    lost = entry("lost", first)
    lost.unknown = True
    for one in (entry("a", first), entry("b", second), entry("a", first), entry("a", second), entry("b", first)):
        backlog.add(one)
    for one in (lost, entry("c", CLAIM), entry("d", second)):
        backlog.add(one)
    taken = []
    while backlog:
        taken.append([(one.run_id, str(one.verb)) for one in backlog.take()])
    assert taken[0] == [("a", "first"), ("b", "second"), ("a", "first"), ("d", "second")]
    assert taken[1:] == [[("a", "second"), ("b", "first")], [("lost", "first")], [("c", "claim")]]
    assert backlog.bytes == 0


@pytest.mark.parametrize("verdict", [Verdict.REFUSED, Verdict.CONFLICT])
def test_what_was_to_be_committed_together_is_tried_apart(verdict: Verdict) -> None:
    """As if the verbs had never been together: then what each is refused for, or the victim of, is its own."""
    batch = [entry("a"), entry("b", FINISH), entry("c")]
    follow = batches.recover(batch, verdict)
    assert not (follow.failed or follow.later)
    assert [[one.run_id for one in portion] for portion in follow.at_once] == [["a", "c"], ["b"]]
    assert not any(one.tries for one in batch)


def test_a_batch_is_bounded() -> None:
    """By entries and by bytes; an entry that is larger than a batch may be goes by itself."""
    backlog: Backlog[Entry[Verb]] = Backlog()
    sizes = [1] * (2 * batches.MAX_ENTRIES + 1) + [batches.MAX_BYTES // 2] * 3 + [batches.MAX_BYTES * 2, 1]
    for size in sizes:
        backlog.add(entry(size=size))
    assert backlog.bytes == sum(sizes)
    taken = []
    while backlog:
        taken.append([one.size for one in backlog.take()])
    assert [size for batch in taken for size in batch] == sizes, "the order has changed"
    assert all(len(batch) == 1 or sum(batch) <= batches.MAX_BYTES for batch in taken)
    assert max(map(len, taken)) == batches.MAX_ENTRIES
    assert [batches.MAX_BYTES * 2] in taken
    assert backlog.bytes == 0


def test_half_of_those_in_circulation_go_while_the_others_are_at_work() -> None:
    """Fifty that come together are parted, and stay so; a few go together."""
    backlog: Backlog[Entry[Verb]] = Backlog()
    for _ in range(50):
        backlog.add(entry())
    committing = backlog.take()
    for _ in range(4):
        answered, committing = committing, backlog.take()
        assert len(answered) == len(committing) == 25
        for one in answered:
            backlog.add(one)
    backlog.take()
    for _ in range(batches.MIN_ENTRIES):
        backlog.add(entry())
    assert len(backlog.take()) == batches.MIN_ENTRIES


def test_a_backlog_is_full_by_bytes() -> None:
    backlog: Backlog[Entry[Verb]] = Backlog()
    backlog.add(entry(size=batches.MAX_WAITING - 1))
    seen = [backlog.full]
    backlog.add(entry(size=1))
    seen.append(backlog.full)
    backlog.take()
    seen.append(backlog.full)
    assert seen == [False, True, False]


@pytest.mark.parametrize("verb", [CLAIM, FINISH, RELEASE], ids=str)
def test_of_one_run_only_one_claim_is_in_a_batch(verb: Verb) -> None:
    backlog: Backlog[Entry[Verb]] = Backlog()
    for run_id in ("a", "a", "b", "a", "c"):
        backlog.add(entry(run_id, verb))
    taken = [[one.run_id for one in backlog.take()] for _ in range(3)]
    assert taken == [["a", "b", "c"], ["a"], ["a"]]
    assert backlog.bytes == 0


def test_what_is_late_is_taken_out_and_nothing_else() -> None:
    backlog: Backlog[Entry[Verb]] = Backlog()
    for number in range(6):
        backlog.add(entry(f"run-{number}", [CLAIM, CHECKPOINT][number % 2], deadline=float(number)))
    assert sorted(one.run_id for one in backlog.expired(2.0)) == ["run-0", "run-1", "run-2"]
    assert backlog.bytes == 3
    assert sorted(one.run_id for one in [*backlog.take(), *backlog.take()]) == ["run-3", "run-4", "run-5"]
    assert not backlog


def test_a_lease_that_is_renewed_puts_off_what_waits_under_it() -> None:
    """Until it is not renewed any more, or for half a minute; a lease longer than that is enough by itself."""
    short, long = (Lease("run", "1:token", 1, seconds, sent=0.0) for seconds in (1.0, 60.0))
    waiting_ones = [Entry(CHECKPOINT, "run", 1, reply_deadline(lease), lease) for lease in (short, long)]
    assert [one.deadline for one in waiting_ones] == [short.deadline, long.deadline]
    short.renew(20.0)
    long.renew(20.0)
    assert [one.deadline for one in waiting_ones] == [short.deadline, 60.0]
    short.renew(40.0)
    assert [one.deadline for one in waiting_ones] == [30.0, 60.0]


def test_silence_leaves_time_to_read_back() -> None:
    assert batches.first_deadline([entry(deadline=100.0), entry(deadline=8.0)]) == 8.0
    assert batches.reply_timeout(8.0, 2.0) == 3.0
    assert batches.reply_timeout(1.0, 2.0) > 0
    assert batches.reply_timeout(1e6, 2.0) <= 10.0
