"""A run of another version: what the user says to it, and the snapshot to go on with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias, cast

from msgspec import UNSET, structs

from durable._common.boundary import calls_out
from durable._engine.headers import reopen
from durable.codecs import Codec
from durable.errors import InvalidArgument, VersionMismatch
from durable.snapshots import Snapshot
from durable.stores.listing import checked_snapshot

Migrated: TypeAlias = Literal["raise", "clear"] | Snapshot | Mapping[str, Any]
OnVersionMismatch: TypeAlias = (
    Literal["raise", "clear"]
    | Callable[[Snapshot, int], Migrated]
    | Callable[[Snapshot, int], Coroutine[Any, Any, Migrated]]
)

Migration: TypeAlias = Callable[[Snapshot], Migrated] | Callable[[Snapshot], Coroutine[Any, Any, Migrated]]


def check_version(version: object) -> int:
    """The version, when a workflow can have it; else `InvalidArgument`."""
    if isinstance(version, bool) or not isinstance(version, int) or not -(2**31) <= version < 2**31:
        raise InvalidArgument(f"version must be an int of at most 31 bits, not {version!r}")
    return version


def check_answer(given: object) -> None:
    """`InvalidArgument` for what cannot be an answer to another version."""
    if given not in (None, "raise", "clear") and not callable(given):
        raise InvalidArgument(
            f'on_version_mismatch must be "raise", "clear" or a function of the stored snapshot and its version, '
            f"not {given!r}"
        )


def check_migrations(given: Mapping[int, Migration] | None, version: int) -> Mapping[int, Migration] | None:
    """The migrations to this version, by the one that they migrate from; `InvalidArgument` where they can be none."""
    if given is None:
        return None
    if not isinstance(cast(object, given), Mapping):
        raise InvalidArgument(
            f"migrates must be a mapping of earlier versions to functions, like {{1: to_2}}, not {type(given).__name__}"
        )
    migrations = dict(given)
    for earlier, migrate in migrations.items():
        if check_version(earlier) == version:
            raise InvalidArgument(f"migrates={{{earlier}: …}}: version {version} is the one that is migrated to")
        if not callable(cast(object, migrate)):
            raise InvalidArgument(
                f"migrates={{{earlier}: …}} must be a function of the stored snapshot, not {type(migrate).__name__}"
            )
    return migrations


def answer_by(migrations: Mapping[int, Migration] | None) -> OnVersionMismatch | None:
    """What these say to a run of another version: where there is none for it, that it is refused."""
    return None if migrations is None else partial(_migrate_by, migrations)


@calls_out
def _migrate_by(migrations: Mapping[int, Migration], stored: Snapshot, version: int) -> Any:
    migrate = migrations.get(version)
    return "raise" if migrate is None else migrate(stored)


@calls_out
def ask_user(given: OnVersionMismatch | None, mismatch: VersionMismatch, stored: Snapshot) -> Any:
    """The user's answer for this run; of an async function, its coroutine."""
    if not callable(given):
        return given
    # A copy for the function to change: `stored` itself is compared with what the store has.
    shown = structs.replace(
        stored, steps=dict(stored.steps), attempts=dict(stored.attempts), metadata=copy.deepcopy(stored.metadata)
    )
    return given(shown, mismatch.stored)


def migrate_run(answer: object, mismatch: VersionMismatch, stored: Snapshot, codec: Codec) -> Snapshot:
    """The snapshot to go on with, under the version that asked. Raises the mismatch where the answer says so."""
    match answer:
        case "raise" | None:
            raise mismatch
        case "clear":
            state = structs.replace(
                stored, steps={}, attempts={}, execution=reopen(stored.execution), result=UNSET, failure=None
            )
        case Snapshot() | Mapping():
            state = checked_snapshot(mismatch.run_id, cast(Snapshot | Mapping[str, Any], answer))
        case _:
            raise InvalidArgument(
                f'run {mismatch.run_id!r}: on_version_mismatch must return "raise", "clear" or a snapshot (or its '
                f"document), not {type(answer).__name__}"
            )
    described = {**stored.metadata, **state.metadata, "version": mismatch.given}
    if state.input is UNSET:  # as with the name and the metadata: what the answer leaves out stays
        state = structs.replace(state, input=stored.input)
    elif state.input != stored.input:
        given = codec.decode(bytes(state.input), run_id=mismatch.run_id, where="the migrated input")
        described["inputHash"] = codec.fingerprint(given, what="the migrated input")
    if not state.execution.epoch:
        known = stored.execution
        execution = structs.replace(
            state.execution, started_at=known.started_at, epoch=known.epoch, owner=known.owner, began=known.began,
            earlier=known.earlier,
        )  # fmt: skip
        state = structs.replace(state, execution=execution)
    # The order in which another version made its calls binds this one to nothing.
    steps = {key: structs.replace(step, unordered=True) for key, step in state.steps.items()}
    return structs.replace(state, workflow_name=stored.workflow_name, steps=steps, metadata=described)
