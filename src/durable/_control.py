"""What anybody may ask of a run from outside: to stop, or to hear something."""

from __future__ import annotations

from typing import Any

from durable._border import public
from durable.codecs import codec_of
from durable.snapshot import checked_name
from durable.stores._given import AnyStore, run_store

__all__ = ["cancel", "cancel_async", "signal", "signal_async"]


@public("durable.cancel")
def cancel(store: AnyStore, id: str) -> bool:
    """Stop the run `id`, wherever it is executed. True when it was running (or interrupted), and is now `cancelled`.

    Its owner can write nothing more: it stops with `RunCancelled` at its next checkpoint, or within two seconds where it
    waits. What was recorded is kept, and `durable.run` with this id goes on from there. Raises `InvalidArgument`, and the
    store's errors.
    """
    return run_store(store).cancel(checked_name("a run's id", id))


@public("durable.aio.cancel")
async def cancel_async(store: AnyStore, id: str) -> bool:
    """The same for asyncio."""
    return await run_store(store).aio.cancel(checked_name("a run's id", id))


@public("durable.signal")
def signal(store: AnyStore, id: str, name: str, payload: Any = None) -> None:
    """Send `payload` (a value that can be stored) to the run `id`, where `step.wait_for(name)` returns it.

    It is kept until it is received, also when the run does not wait for it yet, or is not there yet. Raises
    `InvalidArgument`, `UnstorableValue`, and the store's errors; after `OutcomeUnknown` it may have been sent.
    """
    run_store(store).signal(*_checked(store, id, name, payload))


@public("durable.aio.signal")
async def signal_async(store: AnyStore, id: str, name: str, payload: Any = None) -> None:
    """The same for asyncio."""
    await run_store(store).aio.signal(*_checked(store, id, name, payload))


def _checked(store: AnyStore, id: str, name: str, payload: Any) -> tuple[str, str, str]:
    text = codec_of(store).encode(payload, what=f"the payload of signal {name!r}")
    return checked_name("a run's id", id), checked_name("a signal's name", name), text.decode()
