"""The turns of an event loop in which outcomes are handed out: in the order of their records, one after the other."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sized
from heapq import heappop, heappush
from typing import Final

_MAX_TURNS: Final = 10  # of the loop, after which it is taken to be at rest: it may have other things to do


class Turns:
    """Hands out one outcome, and the next only when all that the one before has woken has come to rest.

    So whatever decides by which of several ended first decides by the order of their records. What `is_resumed` also lets
    the other tasks come to their recorded steps before it hands out the first.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, is_resumed: bool) -> None:
        self._loop = loop
        self._is_resumed = is_resumed
        #: What is to be called in this turn of the loop and the next, where the loop shows that; uvloop does not.
        self._ready: Sized | None = getattr(loop, "_ready", None)
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._turns = 0
        self._is_watching = False

    async def take(self, place: int) -> None:
        """Wait for the turn of an outcome whose record has this place."""
        if not (self._is_watching or self._is_resumed):
            self._watch()
            return
        turn = self._loop.create_future()
        heappush(self._queue, (place, next(self._numbers), turn))
        if not self._is_watching:
            self._watch()
        await turn

    def _watch(self) -> None:
        self._is_watching, self._turns = True, 0
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._turns += 1
        if self._turns < _MAX_TURNS and (self._ready is None or self._ready):
            self._loop.call_soon(self._look)
            return
        while self._queue:
            turn = heappop(self._queue)[2]
            if not turn.done():  # it is when its task was cancelled
                turn.set_result(None)
                self._watch()
                return
        self._is_watching = False
