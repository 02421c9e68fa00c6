"""The functions that ask something of a run from outside, for asyncio: `await durable.aio.signal(store, id, "approved")`.

Each takes any store: one of ours, or one of five verbs, whether these block (then a thread waits for them) or are
coroutines.
"""

from durable._runtime.control import cancel_async as cancel
from durable._runtime.control import retry_async as retry
from durable._runtime.control import signal_async as signal
from durable._runtime.queues import pause_async as pause
from durable._runtime.queues import unpause_async as unpause
from durable._runtime.run_handles import fork_async as fork
from durable._runtime.starts import start_async as start
from durable._runtime.starts import start_many_async as start_many
from durable._runtime.starts import wake_async as wake
from durable._runtime.state import delete_state_async as delete_state
from durable._runtime.state import has_state_async as has_state
from durable._runtime.state import list_pending_async as list_pending
from durable._runtime.state import result_async as result
from durable._runtime.state import status_async as status

__all__ = [
    "cancel",
    "delete_state",
    "fork",
    "has_state",
    "list_pending",
    "pause",
    "result",
    "retry",
    "signal",
    "start",
    "start_many",
    "status",
    "unpause",
    "wake",
]
