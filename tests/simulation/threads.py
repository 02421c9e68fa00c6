"""Threads and their locks in virtual time: what the product asks of `threading` and `concurrent.futures`, on greenlets.

A thread runs until it waits for something; nobody else acts meanwhile. So what is explored is every order of *waits*, and
not what a real scheduler may do between two lines.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol, Self, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from durable._common.locks import locked

__all__ = ["Host", "Thread", "Threading", "rebound", "wait"]

C = TypeVar("C", bound=type)

_TICK: Final = 1e-9  # seconds: what is left of a wait must be more than the rounding of the time, or it never ends


class Host(Protocol):
    """The process that threads belong to."""

    dead: bool
    threads: list[greenlet]

    def after(self, seconds: float, act: Callable[..., object], *args: Any) -> None:
        """Let this happen in the process, unless it is dead by then."""
        ...


class _Waiter:
    __slots__ = ("over", "thread")

    def __init__(self) -> None:
        self.thread = getcurrent()
        self.over = False

    def end(self, answer: object) -> None:
        if not self.over:
            self.over = True
            self.thread.switch(answer)


def wait(host: Host, seconds: float | None, tell: Callable[[Callable[[object], None]], object]) -> Any:
    """Suspend this thread until what `tell` was given is called, and return the answer; None after `seconds`."""
    if host.dead:
        raise GreenletExit
    waiter = _Waiter()
    hub = waiter.thread.parent
    assert hub is not None, "nothing that runs on the event loop may wait"
    if seconds is not None:
        host.after(max(seconds, _TICK) if seconds else 0.0, waiter.end, None)
    tell(lambda answer: host.after(0.0, waiter.end, answer))
    return hub.switch()


def _wait_among(waiting: list[Callable[[object], None]], host: Host, seconds: float | None) -> Any:
    """The same, told in its turn. When its time is over it waits no more: it is not to be told in another's place."""
    mine: list[Callable[[object], None]] = []

    def stand(tell: Callable[[object], None]) -> None:
        mine.append(tell)
        waiting.append(tell)

    try:
        return wait(host, seconds, stand)
    finally:
        waiting[:] = [tell for tell in waiting if tell not in mine]


class Thread:
    """See `threading.Thread`."""

    def __init__(self, host: Host, target: Callable[..., object], args: tuple[Any, ...] = ()) -> None:
        self._host = host
        self._target = target
        self._args = args
        self._greenlet: greenlet | None = None
        self._joining: list[Callable[[object], None]] = []

    @property
    def ident(self) -> int | None:
        """See `threading.Thread.ident`."""
        return None if self._greenlet is None else id(self._greenlet)

    def start(self) -> None:
        """See `threading.Thread.start`."""
        # Its parent, to which it returns, is whoever lets events happen; not the thread that starts it.
        hub = getcurrent()
        while hub.parent is not None:
            hub = hub.parent
        thread = self._greenlet = greenlet(self._run, hub)
        self._host.threads.append(thread)
        _threads[thread] = self
        self._host.after(0.0, thread.switch)

    def is_alive(self) -> bool:
        """See `threading.Thread.is_alive`."""
        return self._greenlet is not None and not self._greenlet.dead and not self._host.dead

    def join(self, timeout: float | None = None) -> None:
        """See `threading.Thread.join`."""
        if self._host.dead:  # its threads have not ended: they are no more, and neither is this one
            raise GreenletExit
        while self.is_alive():
            if wait(self._host, timeout, lambda tell: self._joining.append(lambda _: tell(True))) is None:
                return

    def _run(self) -> None:
        try:
            self._target(*self._args)
        finally:
            _threads.pop(getcurrent(), None)
            joining, self._joining = self._joining, []
            for told in joining:
                told(None)


_threads: dict[greenlet, Thread] = {}


class Lock:
    """See `threading.Lock`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._held = False
        self._waiting: list[Callable[[object], None]] = []

    def acquire(self, *, blocking: bool = True, timeout: float | None = None) -> bool:
        """See `threading.Lock.acquire`."""
        while self._held:
            if not blocking or _wait_among(self._waiting, self._host, timeout) is None:
                return False
        self._held = True
        return True

    def release(self) -> None:
        """See `threading.Lock.release`."""
        self._held = False
        if self._waiting:
            self._waiting.pop(0)(None)

    def locked(self) -> bool:
        """See `threading.Lock.locked`."""
        return self._held

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock:
    """See `threading.RLock`. Nobody waits while he holds one, so nobody ever waits for one."""

    __slots__ = ("depth", "owner")

    def __init__(self, _: Host) -> None:
        self.owner: greenlet | None = None
        self.depth = 0

    def __enter__(self) -> None:
        this = getcurrent()
        if self.depth and self.owner is not this:
            raise AssertionError("a thread waits for something while it holds a lock that others want")
        self.owner = this
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1

    def _is_owned(self) -> bool:
        return self.depth > 0 and self.owner is getcurrent()


class Condition:
    """See `threading.Condition`."""

    def __init__(self, host: Host, lock: RLock | None = None) -> None:
        self._host = host
        self._lock = lock or RLock(host)
        self._waiting: list[Callable[[object], None]] = []

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__()

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Condition.wait`."""
        depth, self._lock.depth = self._lock.depth, 0
        try:
            return _wait_among(self._waiting, self._host, timeout) is not None
        finally:
            self._lock.owner, self._lock.depth = getcurrent(), depth

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """See `threading.Condition.wait_for`. (With a time it is looked at once more when that is over.)"""
        while not (result := predicate()):
            if not self.wait(timeout) and timeout is not None:
                return predicate()
        return result

    def notify(self) -> None:
        """See `threading.Condition.notify`."""
        if self._waiting:
            self._waiting.pop(0)(True)

    def notify_all(self) -> None:
        """See `threading.Condition.notify_all`."""
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            told(True)


class Event:
    """See `threading.Event`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._set = False
        self._waiting: list[Callable[[object], None]] = []

    def is_set(self) -> bool:
        """See `threading.Event.is_set`."""
        return self._set

    def set(self) -> None:
        """See `threading.Event.set`."""
        self._set = True
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            told(True)

    def clear(self) -> None:
        """See `threading.Event.clear`."""
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """See `threading.Event.wait`."""
        if not self._set:
            wait(self._host, timeout, self._waiting.append)
        return self._set


class Semaphore:
    """See `threading.Semaphore`."""

    def __init__(self, host: Host, value: int) -> None:
        self._host = host
        self._free = value
        self._waiting: list[Callable[[object], None]] = []

    def acquire(self, timeout: float | None = None) -> bool:
        """See `threading.Semaphore.acquire`. (With a time it is looked at once more when that is over.)"""
        while not self._free:
            mine: list[Callable[[object], None]] = []

            def stand(tell: Callable[[object], None], mine: list[Callable[[object], None]] = mine) -> None:
                mine.append(tell)
                self._waiting.append(tell)

            if wait(self._host, timeout, stand) is None and not self._free:
                self._waiting = [other for other in self._waiting if other not in mine]
                return False
        self._free -= 1
        return True

    def release(self) -> None:
        """See `threading.Semaphore.release`."""
        self._free += 1
        if self._waiting:
            self._waiting.pop(0)(True)


class Pool:
    """See `ThreadPoolExecutor`. Whatever is submitted has a thread of its own: nobody here submits more than there would be."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._threads: list[Thread] = []

    def submit(self, work: Callable[..., object], *args: Any) -> None:
        """See `ThreadPoolExecutor.submit`."""
        self._threads.append(Thread(self._host, work, args))
        self._threads[-1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()


class _Future(concurrent.futures.Future[Any]):
    """The same, of which a thread of ours waits for the result."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._condition: Any = Condition(host)


class Threading:
    """What stands for `threading` and `concurrent.futures`: for whatever process is acting. Its `host` says which that is."""

    def __init__(self) -> None:
        self.host: Host | None = None
        self._elsewhere = object()

    def Thread(self, target: Callable[..., object], args: tuple[Any, ...] = (), **_: Any) -> Thread:  # noqa: N802
        """See `threading.Thread`."""
        return Thread(self._here, target, args)

    def Lock(self) -> Lock:  # noqa: N802
        """See `threading.Lock`."""
        return Lock(self._here)

    def RLock(self) -> RLock:  # noqa: N802
        """See `threading.RLock`."""
        return RLock(self._here)

    def Semaphore(self, value: int) -> Semaphore:  # noqa: N802
        """See `threading.Semaphore`."""
        return Semaphore(self._here, value)

    def Condition(self, lock: Any = None) -> Any:  # noqa: N802
        """See `threading.Condition`."""
        return Condition(self._here, lock)

    def Event(self) -> Event:  # noqa: N802
        """See `threading.Event`."""
        return Event(self._here)

    def ThreadPoolExecutor(self, *_: Any, **__: Any) -> Pool:  # noqa: N802
        """See `concurrent.futures.ThreadPoolExecutor`."""
        return Pool(self._here)

    def Future(self) -> _Future:  # noqa: N802
        """See `concurrent.futures.Future`."""
        return _Future(self._here)

    def get_ident(self) -> int:
        """See `threading.get_ident`."""
        return id(getcurrent())

    def current_thread(self) -> object:
        """See `threading.current_thread`."""
        return _threads.get(getcurrent(), self._elsewhere)

    @property
    def _here(self) -> Host:
        assert self.host is not None, "no process of the simulation is acting"
        return self.host


def rebound(class_: C, names: Mapping[str, Any]) -> C:
    """The class with other meanings for some of its module's names: its own code, and nothing of the module is changed.

    Raises `LookupError` when one of the names occurs nowhere in it: it was renamed, and its meaning would be the old one again.
    """
    methods: dict[str, Any] = {}
    used: set[str] = set()
    for base in reversed(class_.__mro__):
        if base.__module__.startswith("durable."):
            for name, value in vars(base).items():
                function = value.fget if isinstance(value, property) else value
                if isinstance(function, types.FunctionType):
                    used |= names.keys() & _names_of(_innermost(function).__code__)
                    copy = _copied(function, names)
                    methods[name] = property(copy) if isinstance(value, property) else copy
    _check_used(class_, names, used)
    return type(class_.__name__, (class_,), methods)  # type: ignore[return-value]


def with_names(function: types.FunctionType, names: Mapping[str, Any]) -> types.FunctionType:
    """The function with other meanings for some of its module's names. Raises `LookupError` as `rebound` does."""
    _check_used(function, names, _names_of(_innermost(function).__code__))
    return _copied(function, names)


def _check_used(what: Any, names: Mapping[str, Any], used: Collection[str]) -> None:
    if missing := names.keys() - set(used):
        raise LookupError(f"{what.__module__}.{what.__qualname__} has no use of {', '.join(sorted(missing))}")


def _copied(function: types.FunctionType, names: Mapping[str, Any]) -> types.FunctionType:
    """Of a method under a lock, the method itself is copied, and put under one again."""
    method = getattr(function, "__wrapped__", None)
    is_locked = function.__code__.co_filename == locked.__code__.co_filename
    if isinstance(method, types.FunctionType) and is_locked:
        return locked(_copied(method, names))  # type: ignore[return-value]
    inner = _innermost(function)
    if not names.keys() & set(_names_of(inner.__code__)):
        return function
    function = inner
    meanings = {**function.__globals__, **names}
    copy = types.FunctionType(
        function.__code__, meanings, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _innermost(function: types.FunctionType) -> types.FunctionType:
    inner: types.FunctionType = inspect.unwrap(function)  # not its border: see `durable._common.boundary`
    return inner


def _names_of(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_of(constant)
    return names
