"""The functions that ask something of a run from outside, for asyncio: `await durable.aio.signal(store, id, "approved")`."""

from durable._control import cancel_async as cancel
from durable._control import signal_async as signal

__all__ = ["cancel", "signal"]
